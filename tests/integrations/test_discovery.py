"""`import lowbit` costs next to nothing, and transformers knows lowbit all the same as soon as it loads models."""

import subprocess
import sys

import pytest

KNOWN = 'from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING as known; assert "lowbit" in known'


def fresh(code):
    """What a new interpreter prints; fails where it does."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_lowbit_imports_neither_torch_nor_transformers():
    code = "import sys, lowbit; print(*{'torch', 'transformers', 'numba', 'jinja2'} & set(sys.modules))"
    assert fresh(code).split() == []


@pytest.mark.parametrize(
    "imports",
    [
        "import lowbit; from transformers import PreTrainedModel",
        "from transformers import PreTrainedModel; import lowbit",
        "from lowbit.integrations import transformers",
    ],
)
def test_transformers_knows_lowbit_whichever_comes_first(imports):
    fresh(f"{imports}; {KNOWN}")


def test_nothing_but_the_awaited_module_is_touched(tmp_path):
    (tmp_path / "first.py").write_text("import other\nprint('first')")
    (tmp_path / "other.py").write_text("print('other')")
    (tmp_path / "last.py").write_text("print('last')")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
    code += "from lowbit.integrations.discovery import import_after\nimport_after('first', 'last')\nimport first, last"
    assert fresh(code).split() == ["other", "first", "last"]
    code = code.replace("import_after('first', 'last')", "import first; import_after('first', 'last')")
    assert fresh(code).split() == ["other", "first", "last"]
