"""HierTCN as two graphs of tensors alone, for ONNX: one session folded, and the queries of windows encoded.

They are made of a model's own parameters and read no table of items. What is ragged is a window here: of each place
that is asked, the positions that its query can see, those outside its session masked.

Legend: U users, T asked places, L positions of a window, D what is read of an item, S long-term state, Q size of a
query, C columns of the crowd, K items of a column, J boosted items of a query, W width of the hidden channels.
"""

from __future__ import annotations

__all__ = ["Encode", "Fold", "field_of"]

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hiertcn.models.boosts import CrowdBoosts, RepeatBoosts
from hiertcn.models.hiertcn import WEEK, Clock, HierTCN
from hiertcn.models.low import Other, Recurrent, SoFar
from hiertcn.models.tcn import TCN, Block, receptive_field


def field_of(model: HierTCN) -> int | None:
    """How many positions a query sees, itself included; None: all of its session."""
    config = model.config
    return receptive_field(config.kernel, len(config.channels)) if config.low == "tcn" else None


class _Decay(nn.Module):
    """As `HierTCN._decay`."""

    def __init__(self, model: HierTCN) -> None:
        super().__init__()
        self.bandwidth = torch.tensor(WEEK)
        if model.config.gap_decay == "learned":
            self.bandwidth = model.log_bandwidth.detach().exp() * 3600

    def forward(self, state: Tensor, gap: Tensor) -> Tensor:
        return state * torch.exp(-gap / self.bandwidth).unsqueeze(1)


class Fold(nn.Module):
    """(session [U, D], state [U, S] [, gap [U]]) → [U, S]: the state after a session of which AGG gave `session`."""

    def __init__(self, model: HierTCN) -> None:
        super().__init__()
        self.layers = model.high.layers
        self.decay = None if model.config.gap_decay == "none" else _Decay(model)

    def forward(self, session: Tensor, state: Tensor, gap: Tensor | None = None) -> Tensor:
        if self.decay is not None and gap is not None:
            state = self.decay(state, gap)
        states, values = [], session
        for cell, hidden in zip(self.layers, state.chunk(len(self.layers), dim=1), strict=True):
            values = cell(values, hidden)
            states.append(values)
        return torch.cat(states, dim=1)


class Encode(nn.Module):
    """What `forward` takes, by name → (queries [T, Q] [, boosts [T, J], those of the crowd first]).

    items: [T, L, D], what was read of the item before each position    inside: [T, L], 1 in the session, 0 outside
    state: [T, S], before the session       gap: [T], seconds before it, of a model whose state decays
    hour:  int64 [T, L], of the week, from its Monday on        pause: int64 [T, L], of a model with a clock
    skipped: [T, L, D], the mean of what was shown beside that item and not picked, of a model that reads impressions
    crowd: [T, C, K], weights, of a model that reads them       step: int64 [T], items before the place in its session
    """

    def __init__(self, model: HierTCN) -> None:
        super().__init__()
        self.model = model
        self.decay = None if model.config.gap_decay == "none" else _Decay(model)
        self.clock = None if model.clock is None else _Clock(model.clock)
        self.low: nn.Module = _Strided(model.tcn) if isinstance(model.tcn, TCN) else _Whole(model.tcn)

    @property
    def inputs(self) -> list[str]:
        """The names of what this model takes, in order."""
        model = self.model
        named = {
            **{"items": True, "inside": True, "state": True, "gap": self.decay is not None},
            **dict.fromkeys(("hour", "pause"), self.clock is not None),
            **{"skipped": model.input_skipped is not None, "crowd": model.crowd_boosts is not None},
            "step": model.repeat_boosts is not None,
        }
        return [name for name, there in named.items() if there]

    def forward(self, *given: Tensor) -> tuple[Tensor, ...]:
        named, model = dict(zip(self.inputs, given, strict=True)), self.model
        state, inside = named["state"], named["inside"].unsqueeze(2)
        if self.decay is not None:
            state = self.decay(state, named["gap"])
        hidden = model.input_item(named["items"]) + model.input_state(state).unsqueeze(1)
        if model.input_skipped is not None:
            hidden = hidden + model.input_skipped(named["skipped"])
        if self.clock is not None:
            hidden = hidden + self.clock(named["hour"], named["pause"])
        hidden = self.low(model.norm(hidden) * inside, inside)
        queries = hidden if model.config.head == "softmax" else model.finished(model.head(hidden))
        boosts = []
        if isinstance(model.crowd_boosts, CrowdBoosts):
            boosts.append(model.crowd_boosts.weighed(hidden, named["crowd"]))
        if isinstance(model.repeat_boosts, RepeatBoosts):
            boosts.append(model.repeat_boosts.weighed(hidden, named["step"]))
        return (queries, torch.cat(boosts, dim=1)) if boosts else (queries,)


class _Clock(nn.Module):
    """The embeddings of `Clock`, those of hour and weekday as one of the hour of the week."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        hours = torch.arange(168)
        self.hour = clock.hour.weight.detach()[hours % 24] + clock.weekday.weight.detach()[hours // 24]
        self.pause = clock.pause.weight.detach()

    def forward(self, hour: Tensor, pause: Tensor) -> Tensor:
        return F.embedding(hour, self.hour) + F.embedding(pause, self.pause)


class _Strided(nn.Module):
    """A TCN at the last position of windows as long as its field: of each level only every position is computed that
    the next one reads, and they are twice as far apart each time, so a level is a convolution of stride 2."""

    def __init__(self, tcn: TCN) -> None:
        super().__init__()
        self.blocks = tcn.blocks
        blocks = [block for block in tcn.blocks if isinstance(block, Block)]
        # Told before: from the shapes of tensors a graph would reckon it anew each time.
        self.length = receptive_field(len(blocks[0].weight), len(blocks))
        self.weights = [block.weight.detach().flatten(0, 1) for block in blocks]

    def forward(self, hidden: Tensor, inside: Tensor) -> Tensor:
        length = self.length
        for block, weight in zip(self.blocks, self.weights, strict=True):
            assert isinstance(block, Block)
            kernel = len(block.weight)
            last = block is self.blocks[-1]
            length = count = 1 if last else (length - kernel) // 2 + 1
            begins = [kernel - 1 - tap for tap in range(kernel)]
            taps = [hidden[:, begin : begin + 2 * count - 1 : 2] for begin in begins]
            convolved = torch.relu(torch.cat(taps, dim=2) @ weight + block.bias)
            hidden = block.norm(torch.relu(convolved + block.residual(taps[0])))
            if not last:
                inside = inside[:, kernel - 1 :: 2]
                hidden = hidden * inside
        return hidden[:, 0]


class _Whole(nn.Module):
    """A low level other than a TCN, at the last inner position of windows that begin where their sessions do."""

    def __init__(self, other: nn.Module) -> None:
        super().__init__()
        assert isinstance(other, Other)
        self.read: nn.Module
        if isinstance(other.read, Recurrent):
            self.read = _Recurrent(other.read)
        else:
            assert isinstance(other.read, SoFar)
            self.read = _SoFar(other.read)
        self.norm = other.norm

    def forward(self, hidden: Tensor, inside: Tensor) -> Tensor:
        out: Tensor = self.norm(self.read(hidden, inside))
        return out


class _Recurrent(nn.Module):
    """`Recurrent`, by the GRU of torch, for which ONNX has an operator."""

    def __init__(self, recurrent: Recurrent) -> None:
        super().__init__()
        cells = recurrent.cells.layers
        inputs = recurrent.size // len(cells)
        self.gru = nn.GRU(inputs, recurrent.units, len(cells), batch_first=True)
        for layer, cell in enumerate(cells):
            for name, values in cell.named_parameters():
                getattr(self.gru, f"{name}_l{layer}").data = values.data

    def forward(self, hidden: Tensor, inside: Tensor) -> Tensor:
        states, _ = self.gru(hidden)
        last = inside.sum(1, keepdim=True).long() - 1
        found: Tensor = states.gather(1, last.expand(-1, 1, states.shape[2]))
        return found.squeeze(1)


class _SoFar(nn.Module):
    """`SoFar`: the mean of what is inside but for the first position, or that one where there is no other."""

    def __init__(self, mean: SoFar) -> None:
        super().__init__()
        self.map = mean.map

    def forward(self, hidden: Tensor, inside: Tensor) -> Tensor:
        later = inside.sum(1) - 1
        first, sums = hidden[:, 0], hidden.sum(1)
        out: Tensor = self.map(torch.where(later > 0, (sums - first) / later.clamp_min(1), first))
        return out
