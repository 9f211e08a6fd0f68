"""No progress bars of transformers between ours; imported once transformers is."""

from transformers.utils.logging import disable_progress_bar

disable_progress_bar()  # type: ignore[no-untyped-call]
