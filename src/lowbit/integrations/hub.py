"""Models by their name on the hub."""

from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from lowbit.core.errors import BadRequest

_WANTED = ["*.json", "*.txt", "*.model", "*.jinja", "*.safetensors"]


def resolve_folder(model: str) -> Path:
    """A local folder as it is, anything else as a name on the hub, downloaded (or found in its cache)."""
    path = Path(model).expanduser()
    if path.is_dir():
        return path
    if path.exists() or model.startswith((".", "/", "~")) or model.count("/") > 1:
        raise BadRequest(f"{model}: not a folder. Give a Hugging Face model folder or a name on the hub.")
    try:
        return Path(snapshot_download(model, allow_patterns=_WANTED))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise BadRequest(
            f"{model}: neither a folder here nor a model that the hub gave ({type(error).__name__}). "
            "Check the spelling and the connection."
        ) from error
