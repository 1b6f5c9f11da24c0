"""Unpadded computation against padded torch and plain loops."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence

from hiertcn.models.aggregation import aggregate
from hiertcn.packing import Packing
from hiertcn.ragged import SessionBatch, causal_conv, pack_sessions, shift

lengths_of_sessions = st.lists(st.integers(1, 9), min_size=1, max_size=8)


def batch_of(
    users: Sequence[Sequence[Sequence[int]]], unfinished: Sequence[int] = (), gaps: Sequence[float] = ()
) -> SessionBatch:
    """A batch of users, each a list of sessions, each a list of item rows; users in `unfinished` still run the last."""
    sessions = [session for user in users for session in user]
    counts = np.array([len(user) for user in users])
    finished = np.ones(len(sessions), dtype=bool)
    finished[[int(counts[: user + 1].sum()) - 1 for user in unfinished]] = False
    items = np.array([row for session in sessions for row in session], dtype=np.int64)
    return pack_sessions(
        items=items,
        seen=np.arange(len(items), dtype=np.float64),
        session_lengths=np.array([len(session) for session in sessions]),
        user_sessions=counts,
        gaps=np.array(gaps or [0.0] * len(sessions), dtype=np.float32),
        finished=finished,
        carried=np.arange(len(users)),
        rows=np.arange(len(users)),
        closing=np.arange(len(users)),
        positions=np.arange(len(items)),
        targets=items,
        events=np.arange(len(items)),
    )


def batch_of_lengths(lengths: Sequence[int]) -> SessionBatch:
    return batch_of([[[1] * length] for length in lengths])


def flat(values: Tensor, batch: SessionBatch) -> list[Tensor]:
    """Positions [N, …] back into one [length, …] a session."""
    return list(values[batch.layout.place].split(batch.session_lengths.tolist()))


@settings(deadline=None)
@given(st.lists(st.integers(0, 9), max_size=8))
def test_packing_is_the_order_of_torch(lengths: list[int]) -> None:
    packing = Packing(np.array(lengths, dtype=np.int64))
    total = sum(lengths)
    assert packing.flat[packing.place].tolist() == list(range(total))
    active = [g for g in packing.ranked.tolist() if lengths[g]]
    assert packing.active.tolist() == active
    assert sorted(packing.ranked.tolist()) == list(range(len(lengths)))
    if not active:
        assert packing.sizes.tolist() == []
        return
    padded = torch.full((max(lengths), len(active)), -1)
    begins = np.cumsum([0, *lengths])
    for column, g in enumerate(active):
        padded[: lengths[g], column] = torch.arange(begins[g], begins[g + 1])
    packed = pack_padded_sequence(padded, torch.tensor([lengths[g] for g in active]))
    assert packing.flat.tolist() == packed.data.tolist()
    assert packing.sizes.tolist() == packed.batch_sizes.tolist()
    owner = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    assert packing.sequence.tolist() == owner[packing.flat].tolist()
    assert int(packing.sizes.sum()) == total


@settings(deadline=None)
@given(st.lists(st.integers(0, 9), max_size=8), st.integers(0, 12))
def test_a_lag_is_a_suffix_of_the_order(lengths: list[int], lag: int) -> None:
    packing = Packing(np.array(lengths, dtype=np.int64))
    begin, source = packing.lag(lag)
    step = torch.cat([torch.arange(length) for length in [0, *lengths]])[packing.flat]
    assert (step[:begin] < lag).all()
    assert (step[begin:] >= lag).all()
    assert (packing.flat[begin:] - packing.flat[source]).tolist() == [lag] * len(source)
    assert packing.sequence[begin:].tolist() == packing.sequence[source].tolist()


@settings(deadline=None)
@given(lengths_of_sessions, st.integers(0, 99))
def test_shift_and_session_sum_by_session(lengths: list[int], seed: int) -> None:
    batch = batch_of_lengths(lengths)
    values = torch.randn(sum(lengths), 2, generator=torch.Generator().manual_seed(seed))
    for before, after in zip(flat(values, batch), flat(shift(values, batch), batch), strict=True):
        assert torch.equal(after, torch.cat([torch.zeros(1, 2), before[:-1]]))
    sums = torch.stack([session.sum(0) for session in flat(values, batch)])
    torch.testing.assert_close(batch.session_sum(values), sums)


@settings(max_examples=50, deadline=None)
@given(lengths_of_sessions, st.integers(1, 5), st.sampled_from([1, 2, 4]), st.integers(0, 99))
def test_causal_conv_is_conv1d_on_padded_sessions(lengths: list[int], kernel: int, dilation: int, seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    batch = batch_of_lengths(lengths)
    hidden = torch.randn(sum(lengths), 3, generator=rng, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(kernel, 3, 2, generator=rng, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(2, generator=rng, dtype=torch.float64, requires_grad=True)
    out = causal_conv(hidden, weight, bias, dilation, batch)
    expected = []
    for session in flat(hidden, batch):
        padded = torch.nn.functional.pad(session.T, (dilation * (kernel - 1), 0))
        expected.append(
            torch.conv1d(padded.unsqueeze(0), weight.permute(2, 1, 0).flip(2), bias, dilation=dilation)[0].T
        )
    torch.testing.assert_close(flat(out, batch), expected)
    probe = torch.randn(sum(lengths), 2, generator=rng, dtype=torch.float64)
    got = torch.autograd.grad((out * probe).sum(), (hidden, weight, bias))
    wanted = torch.autograd.grad((torch.cat(expected) * probe[batch.layout.place]).sum(), (hidden, weight, bias))
    torch.testing.assert_close(got, wanted)


def test_causal_conv_by_its_formula() -> None:
    batch = batch_of_lengths([2, 5, 1, 4])
    rng = torch.Generator().manual_seed(0)
    hidden, weight, bias = (torch.randn(*shape, generator=rng) for shape in [(12, 3), (3, 3, 2), (2,)])
    for session, out in zip(flat(hidden, batch), flat(causal_conv(hidden, weight, bias, 2, batch), batch), strict=True):
        for step in range(len(session)):
            taps = [session[step - 2 * j] @ weight[j] for j in range(3) if step - 2 * j >= 0]
            torch.testing.assert_close(out[step], bias + sum(taps))


@pytest.mark.parametrize("dilation", [1, 2])
def test_gradients_of_the_convolution(dilation: int) -> None:
    batch = batch_of_lengths([1, 4, 2, 3])
    rng = torch.Generator().manual_seed(1)
    inputs = [
        torch.randn(*shape, generator=rng, dtype=torch.float64, requires_grad=True)
        for shape in [(10, 2), (3, 2, 3), (3,)]
    ]
    assert torch.autograd.gradcheck(lambda *values: causal_conv(*values, dilation, batch), inputs)


def test_under_autocast_the_convolution_computes_in_its_type() -> None:
    batch = batch_of_lengths([3, 1])
    hidden, weight, bias = torch.ones(4, 2, requires_grad=True), torch.ones(2, 2, 3), torch.zeros(3)
    with torch.autocast("cpu", torch.bfloat16):
        out = causal_conv(hidden, weight, bias, 1, batch)
    assert out.dtype == torch.bfloat16
    out.sum().backward()
    assert hidden.grad is not None
    assert hidden.grad.dtype == torch.float32


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=5), min_size=1, max_size=5), st.integers(0, 99))
def test_aggregates_take_known_items_only(sessions: list[list[int]], seed: int) -> None:
    batch = batch_of([sessions])
    vectors = torch.randn(len(batch.items), 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    means, largest = aggregate(vectors, batch, "mean"), aggregate(vectors, batch, "max")
    for session, mean, most, mine in zip(sessions, means, largest, flat(vectors, batch), strict=True):
        known = mine[torch.tensor(session) > 0]
        torch.testing.assert_close(mean, known.mean(0) if len(known) else torch.zeros_like(mean))
        torch.testing.assert_close(most, known.amax(0) if len(known) else torch.zeros_like(most))


@pytest.mark.parametrize("how", ["mean", "max"])
def test_gradients_of_aggregates(how: str) -> None:
    batch = batch_of([[[1, 2, 0], [3], [0]], [[2, 2]]])
    vectors = torch.randn(7, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda values: aggregate(values, batch, how), vectors)


people = st.lists(  # a 0 stands at the end of a session only
    st.lists(
        st.builds(
            lambda known, asked: [*known, 0] if asked or not known else known,
            st.lists(st.integers(1, 9), max_size=4),
            st.booleans(),
        ),
        min_size=1,
        max_size=4,
    ),
    min_size=1,
    max_size=5,
)


@settings(deadline=None)
@given(people, st.data())
def test_states_are_found_where_sessions_fold(users: list[list[list[int]]], data: st.DataObject) -> None:
    """`before` and `after` name the initial state, or the fold of the latest finished session with a known item."""
    unfinished = data.draw(st.lists(st.sampled_from(range(len(users))), unique=True))
    batch = batch_of(users, unfinished)
    names = [f"initial {user}" for user in range(len(users))] + [f"fold {m}" for m in batch.folds.tolist()]
    number, before, after = 0, [], []
    for user, sessions in enumerate(users):
        state = f"initial {user}"
        for k, session in enumerate(sessions):
            before.append(state)
            if any(session) and not (user in unfinished and k == len(sessions) - 1):
                state = f"fold {number}"
            number += 1
        after.append(state)
    assert [names[place] for place in batch.before.tolist()] == before
    assert [names[place] for place in batch.after.tolist()] == after
    folds = batch.user[batch.folds.numpy()].tolist()
    order = sorted(range(len(users)), key=lambda user: -folds.count(user))
    assert folds[: len(set(folds))] == [user for user in order if user in folds]


@settings(deadline=None)
@given(people, st.integers(1, 6), st.data())
def test_windows_hold_the_last_items(users: list[list[list[int]]], width: int, data: st.DataObject) -> None:
    unfinished = data.draw(st.lists(st.sampled_from(range(len(users))), unique=True))
    batch = batch_of(users, unfinished)
    initial = torch.arange(len(users) * width).reshape(len(users), width) + 100
    sequences, items = batch.by_user, batch.items.unsqueeze(1)
    befores, begun, after = [], [], []
    for user, sessions in enumerate(users):
        history = initial[user].tolist()
        for k, session in enumerate(sessions):
            begun.append(history[-width:])
            if k == len(sessions) - 1 and user in unfinished:
                after.append(history[-width:])
            for row in session:
                befores.append(history[-width:])
                history += [row] if row else []
        if user not in unfinished:
            after.append(history[-width:])
    assert sequences.windows(items, initial, sequences.before)[batch.layout.place].tolist() == befores
    states = sequences.windows(items, initial, sequences.begun)
    assert states.tolist() == begun
    assert sequences.windows(items, initial, sequences.after).tolist() == after
    # A session's own sequence goes on from the state before it, so it comes to the same.
    sequences = batch.by_session
    assert sequences.windows(items, states, sequences.before)[batch.layout.place].tolist() == befores


@settings(deadline=None)
@given(people, st.integers(1, 5), st.integers(1, 4), st.integers(1, 4), st.integers(0, 99))
def test_sequences_go_on_from_the_rows_of_the_state(
    users: list[list[list[int]]], width: int, block: int, context: int, seed: int
) -> None:
    batch = batch_of(users)
    initial = torch.randint(0, 4, (len(users), width), generator=torch.Generator().manual_seed(seed))
    held = [row[1 + max((k for k in range(width) if not row[k]), default=-1) :] for row in initial.tolist()]
    own = [[row for session in user for row in session] for user in users]
    whole = [before + [row for row in rows if row] for before, rows in zip(held, own, strict=True)]
    line = batch.by_user.continued(batch.items, initial)
    assert line.rows[line.packing.place].tolist() == [row for rows in whole for row in rows]
    # Flat elements count from 1, nothing is 0: what is the latest before each position.
    flat_of = torch.cat([torch.zeros(1, dtype=torch.int64), 1 + line.packing.flat])
    latest, first = [], 0
    for mine, before, rows in zip(own, held, whole, strict=True):
        count = len(before)
        for row in mine:
            latest.append(first + count if count else 0)
            count += row > 0
        first += len(rows)
    assert flat_of[line.latest[batch.by_user.before]][batch.layout.place].tolist() == latest
    elements, place = line.pieces(block, context)
    for rows, begin in zip(whole, np.cumsum([0, *map(len, whole[:-1])]), strict=True):
        for at in range(len(rows)):
            step, piece = divmod(int(place[line.packing.place[begin + at]]), elements.shape[1])
            back = min(context, at)
            seen = line.packing.flat[elements[step - back : step + 1, piece]]
            assert seen.tolist() == list(range(begin + at - back, begin + at + 1))
    assert elements.shape[0] <= block + context


def test_a_batch_on_its_device_is_the_batch() -> None:
    batch = batch_of([[[1, 2], [3]], [[4]]])
    assert batch.to(torch.device("cpu")) is batch
    moved = batch.to(torch.device("meta"))
    assert {moved.items.device.type, moved.before.device.type, moved.lag(1)[1].device.type} == {"meta"}
    assert moved.layout is batch.layout
