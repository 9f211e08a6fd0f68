"""Accelerators that a machine only says it has, and a call that tells what it was given: for tests of who gets what."""

import ray


def two_of_a_kind():
    """In place of `lowbit.pipeline.device.accelerators`."""
    return (("Declared", 1 << 30), ("Declared", 1 << 30))


def given(number):
    """The number, and what Ray gave this call: resources, and which accelerators."""
    context = ray.get_runtime_context()
    return number, context.get_assigned_resources(), context.get_accelerator_ids()["GPU"]
