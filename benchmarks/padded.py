"""HierTCN as the authors' code computes it: session after session, each padded to the longest of its turn."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from hiertcn.models.hiertcn import HierTCN
from hiertcn.packing import Packing
from hiertcn.ragged import SessionBatch


def padded_forward(model: HierTCN, batch: SessionBatch, initial: Tensor) -> tuple[Tensor, Tensor]:
    """What `model(batch, initial)` gives, for the paper preset with mean AGG, with the same weights."""
    first = np.cumsum(batch.user_sessions) - batch.user_sessions
    starts = np.cumsum(batch.session_lengths) - batch.session_lengths
    folded = np.isin(np.arange(batch.sessions), batch.folds.numpy())
    state, queries, places = initial, [], []
    for turn in range(int(batch.user_sessions.max())):
        users = np.flatnonzero(batch.user_sessions > turn)
        sessions = first[users] + turn
        lengths = torch.from_numpy(batch.session_lengths[sessions])
        steps = torch.arange(int(lengths.max()))
        held = steps < lengths.unsqueeze(1)
        place = batch.layout.place[
            (torch.from_numpy(starts[sessions]).unsqueeze(1) + steps).clamp(max=len(batch.items) - 1)
        ]
        vectors = model.items(torch.where(held, batch.items[place], 0))
        now = state[torch.from_numpy(users)]
        inputs = F.pad(vectors, (0, 0, 1, 0))[:, :-1]
        hidden = model.input_item(inputs) + model.input_state(now).unsqueeze(1)
        for block in model.tcn.blocks:
            reach = (len(block.weight) - 1) * block.dilation
            # conv1d reads forwards, our taps backwards.
            weight = block.weight.flip(0).permute(2, 1, 0)
            convolved = F.conv1d(F.pad(hidden.transpose(1, 2), (reach, 0)), weight, block.bias, dilation=block.dilation)
            hidden = torch.relu(torch.relu(convolved).transpose(1, 2) + block.residual(hidden))
        queries.append(model.head(hidden)[held])
        places.append(place[held])
        finished = torch.from_numpy(folded[sessions])
        mean = vectors.sum(1) / lengths.unsqueeze(1)
        one = Packing(np.ones(int(finished.sum()), dtype=np.int64))
        if len(one.flat):
            at = torch.from_numpy(users)[finished]
            state = state.index_copy(0, at, model.high(mean[finished], one, now[finished]))
    flat = torch.cat(queries)
    return torch.empty_like(flat).index_copy(0, torch.cat(places), flat), state
