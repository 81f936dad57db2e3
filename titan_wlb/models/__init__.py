"""TorchTitan train specs of this package, one folder a model family."""

from torchtitan.protocols.train_spec import register_train_spec


def register() -> None:
    """Makes the models known to TorchTitan under their names; call once a process, before the trainer is built."""
    from titan_wlb.models import llama3_wlb

    register_train_spec("llama3_wlb", llama3_wlb.get_train_spec())
