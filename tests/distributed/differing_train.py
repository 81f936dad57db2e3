"""The real entry point, with a flaw in rank 1's planner: TRAIN_FILE=differing_train PLANTED=... ./run_train.sh

PLANTED=coefficients    it costs documents otherwise from the start
PLANTED=step_3          it swaps two documents of step 3, once
"""

from __future__ import annotations

import os
from dataclasses import replace

import titan_wlb.compat.cpu

# isort: split
from parity_layouts import FLAVOR, SHAPE
from torchtitan.models.llama3.model.args import TransformerModelArgs

import titan_wlb.trainer
from titan_wlb.models.llama3_wlb.flavors import FLAVORS
from titan_wlb.planning.planner import Planner
from titan_wlb.planning.workload import Workload
from titan_wlb.train import main


class OtherCoefficients(Planner):
    def __init__(self, lengths, config, **kwargs):
        super().__init__(lengths, replace(config, workload=Workload(0, 1, 1)), **kwargs)


class OtherDocumentsInStep3(Planner):
    def _pack(self):
        packed, arrived = super()._pack()
        if self.step == 3:
            packed[0], packed[1] = packed[1], packed[0]
        return packed, arrived


if __name__ == "__main__":
    FLAVORS[FLAVOR] = TransformerModelArgs(**SHAPE)
    if os.environ["RANK"] == "1":
        planted = {"coefficients": OtherCoefficients, "step_3": OtherDocumentsInStep3}
        titan_wlb.trainer.Planner = planted[os.environ["PLANTED"]]
    main()
