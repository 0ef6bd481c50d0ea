"""`torch.load` and a distributed checkpoint's `.metadata` execute what is in them."""

import pickle
from pathlib import Path

import pytest

from tests.sources import zoo
from wvmonitor.errors import UnsafeFileError
from wvmonitor.sources import read_adapter, read_checkpoints


class Payload:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return (Path.touch, (self.mark,))


@pytest.mark.parametrize("name", ["pytorch_model.bin", ".metadata", "adapter_model.bin"])
def test_a_pickle_is_never_run(name: str, tmp_path: Path) -> None:
    """A folder of pickles is refused by name, and nothing in it is executed."""
    zoo.build("llama").save_pretrained(tmp_path / "base")
    folder, mark = tmp_path / "end", tmp_path / "executed"
    folder.mkdir()
    (folder / name).write_bytes(pickle.dumps(Payload(mark)))
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2}')
    read = read_adapter if name.startswith("adapter") else read_checkpoints
    arguments = (folder,) if name.startswith("adapter") else (tmp_path / "base", folder)
    with pytest.raises(UnsafeFileError, match=name):
        read(*arguments)
    assert not mark.exists()
    pickle.loads((folder / name).read_bytes())  # noqa: S301  ours: the payload does work
    assert mark.exists()
