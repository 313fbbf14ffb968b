"""A checkpoint's weights on their way into sharded training and out of it, a few tensors at a time."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mgpt_edge.export.checkpoint import EMBEDDING
from mgpt_edge.export.model import Decoder
from mgpt_edge.finetune import lora
from mgpt_edge.finetune.parallel import Sharding
from mgpt_edge.finetune.sft import summed_losses, whole

if TYPE_CHECKING:
    from collections.abc import Iterator

    from peft import LoraConfig

    from mgpt_edge.export.checkpoint import Checkpoint
    from mgpt_edge.finetune.parallel import Processes


class Objective(nn.Module):
    """The losses as a module: sharding begins and ends with a module's call."""

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, tokens: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        return summed_losses(self.decoder, tokens, labels)


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """A checkpoint's decoder, ready to train: whole, or frozen with adapters.

    Args:
        checkpoint: where the weights come from.
        dropout: of the residual branches.
        dtype: what is computed in, and what frozen weights are kept in; trained weights are float32.
        adapters: None trains every weight.
        seed: of the adapters' first values.
    """

    checkpoint: Checkpoint
    dropout: float
    dtype: torch.dtype = torch.bfloat16
    adapters: LoraConfig | None = None
    seed: int = 0

    def load(self, processes: Processes) -> Objective:
        """The sharded model, read block by block: beside its share a process holds one block, or embedding and head."""
        sharding = Sharding(processes, self.dtype)
        with torch.device("meta"):
            decoder = Decoder(replace(self.checkpoint.config, dropout=self.dropout), self.checkpoint.norm_groups)
            if self.adapters:
                lora.add_adapters(decoder, self.adapters)
        for index, block in enumerate(decoder.model.layers):
            self._fill(block, f"model.layers.{index}.", processes.device)
            sharding.block(block)
        self._fill(decoder.model.embed_tokens, EMBEDDING.removesuffix("weight"), processes.device)
        self._fill(decoder.model.norm, "model.norm.", processes.device)
        if self.checkpoint.config.tied_embeddings:
            decoder.lm_head.weight = decoder.model.embed_tokens.weight
        else:
            self._fill(decoder.lm_head, "lm_head.", processes.device)
        objective = Objective(decoder)
        sharding.root(objective)
        return objective

    def _fill(self, module: nn.Module, prefix: str, device: torch.device) -> None:
        state = {}
        for name, parameter in module.named_parameters():
            full = prefix + name
            if lora.is_adapter(name):
                value = lora.initial(full, tuple(parameter.shape), self.seed)
            else:
                value = self.checkpoint.tensor(lora.base_name(full))
            state[name] = value.to(device, torch.float32 if parameter.requires_grad else self.dtype)
        module.load_state_dict(state, assign=True)

    def trained(self, decoder: Decoder) -> Iterator[tuple[str, Tensor]]:
        """The decoder's tensors under the checkpoint's names, adapters merged, each as the file had it.

        Every process goes through it at the same time: each tensor is put together from all shares.
        """
        parameters = dict(decoder.named_parameters())
        for name in self.checkpoint.names():
            if self.adapters is None:
                value = whole(parameters[name]).detach()
            else:
                # Frozen weights were rounded for computing; the file's own are what the adapters are merged into.
                value = self.checkpoint.tensor(name)
                stem = name.removesuffix("weight")
                if f"{stem}lora_A.{lora.NAME}.weight" in parameters:
                    a, b = (whole(parameters[f"{stem}lora_{x}.{lora.NAME}.weight"]).detach().cpu() for x in "AB")
                    value = lora.merged(value, a, b, self.adapters)
            yield name, value.to("cpu", self.checkpoint.dtype(name))

    def adapter_tensors(self, decoder: Decoder) -> dict[str, Tensor]:
        """The adapters under peft's names, float32; every process calls it at the same time."""
        return {
            lora.peft_name(name): whole(parameter).detach().cpu().contiguous()
            for name, parameter in decoder.named_parameters()
            if lora.is_adapter(name)
        }
