"""Llama 3 for balanced packed documents: TorchTitan's model with attention inside documents over CP ranks."""

from torchtitan.components.lr_scheduler import build_lr_schedulers
from torchtitan.components.optimizer import build_optimizers
from torchtitan.models.llama3.model.state_dict_adapter import Llama3StateDictAdapter
from torchtitan.protocols.train_spec import TrainSpec

from titan_wlb.data.tokenizer import build_tokenizer
from titan_wlb.loss import build_normalised_loss
from titan_wlb.models.llama3_wlb.flavors import FLAVORS
from titan_wlb.models.llama3_wlb.model import WLBTransformer
from titan_wlb.models.llama3_wlb.parallelize import parallelize_llama_wlb
from titan_wlb.pipeline_parallel.build import pipeline_llm_wlb

__all__ = ["FLAVORS", "WLBTransformer", "get_train_spec"]


def get_train_spec() -> TrainSpec:
    """TorchTitan's description of the model. The dataloader needs the mesh and is built by the trainer."""
    return TrainSpec(
        model_cls=WLBTransformer,
        model_args=FLAVORS,
        parallelize_fn=parallelize_llama_wlb,
        pipelining_fn=pipeline_llm_wlb,
        build_optimizers_fn=build_optimizers,
        build_lr_schedulers_fn=build_lr_schedulers,
        build_dataloader_fn=None,
        build_tokenizer_fn=build_tokenizer,
        build_loss_fn=build_normalised_loss,
        state_dict_adapter=Llama3StateDictAdapter,
    )
