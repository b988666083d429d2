"""The Triton kernel of `marginal`'s decision: one thread block for a batch of decode.

It walks the rows a few at a time; what the experts add up to stays in registers between the walks.
The same steps in the same arithmetic as the tensor code and `marginal.c`: gate mass in whole units,
prices in doubles (parameters come rounded to float32, as Triton passes them).
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit  # type: ignore[untyped-decorator]
def _prices(  # type: ignore[no-untyped-def]
    counts, values, class_index, slope, base, experts, classes, max_tokens, BLOCK_E: tl.constexpr
):
    """Both columns of price of each expert at its count [BLOCK_E], double."""
    cols = tl.arange(0, BLOCK_E)
    real = cols < experts
    within = tl.minimum(counts, max_tokens)
    at = 2 * (within * classes + tl.load(class_index + cols, mask=real, other=0))
    beyond = (counts - within).to(tl.float64)
    first = tl.load(values + at, mask=real, other=0.0)
    second = tl.load(values + at + 1, mask=real, other=0.0)
    first += beyond * tl.load(slope + 2 * cols, mask=real, other=0.0)
    second += beyond * tl.load(slope + 2 * cols + 1, mask=real, other=0.0)
    return first, second


@triton.jit  # type: ignore[untyped-decorator]
def _spent(plain, share, round_of, t, is_row, TOP_K: tl.constexpr):  # type: ignore[no-untyped-def]
    """What rows `t` lose of their mass by the experts that go so far."""
    spent = (t * 0).to(tl.int64)
    for j in tl.static_range(TOP_K):
        e = tl.load(plain + t * TOP_K + j, mask=is_row, other=0)
        part = tl.load(share + t * TOP_K + j, mask=is_row, other=0)
        spent += tl.where(tl.load(round_of + e, mask=is_row, other=0) > 0, part, 0)
    return spent


@triton.jit  # type: ignore[untyped-decorator]
def decide_marginal(  # type: ignore[no-untyped-def]
    scores,
    ranking,
    plain,
    plain_weights,
    real,
    changeable,
    values,
    class_index,
    slope,
    base,
    indices,
    weights,
    used,
    lost,
    counts_out,
    share,
    price_of,
    saving_of,
    offered_of,
    round_of,
    rows,
    experts,
    classes,
    max_tokens,
    slack,
    first_weight,
    second_weight,
    lam,
    budget,
    TOP_K: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_E: tl.constexpr,
    ONE: tl.constexpr,
    DESCRIBED: tl.constexpr,
    BUDGETED: tl.constexpr,
):
    """Decide for `rows` rows; see `decide` for shapes. Launched as one program."""
    cols = tl.arange(0, BLOCK_E)
    expert = cols < experts
    mass = tl.zeros([BLOCK_E], dtype=tl.int64)
    keepers = tl.zeros([BLOCK_E], dtype=tl.int64)
    counts = tl.zeros([BLOCK_E], dtype=tl.int64)
    real_rows = tl.zeros([BLOCK_T], dtype=tl.int64)

    for start in range(0, rows, BLOCK_T):
        t = start + tl.arange(0, BLOCK_T)
        is_row = t < rows
        may = is_row
        counted = is_row
        if DESCRIBED:
            counted = is_row & (tl.load(real + t, mask=is_row, other=0) != 0)
            may = counted & (tl.load(changeable + t, mask=is_row, other=0) != 0)
        inside = is_row[:, None] & expert[None, :]
        row = tl.load(scores + t[:, None] * experts + cols[None, :], mask=inside, other=0.0)
        # x - x is 0 for finite x alone.
        may = may & (tl.sum(((row - row) != 0.0).to(tl.int32), axis=1) == 0)
        total = tl.zeros([BLOCK_T], dtype=tl.float64)
        for j in tl.static_range(TOP_K):
            e = tl.load(plain + t * TOP_K + j, mask=is_row, other=0)
            total += tl.load(scores + t * experts + e, mask=is_row, other=0.0).to(tl.float64)
        total = tl.maximum(total, 1e-300)
        real_rows += counted.to(tl.int64)
        for j in tl.static_range(TOP_K):
            e = tl.load(plain + t * TOP_K + j, mask=is_row, other=0)
            score = tl.load(scores + t * experts + e, mask=is_row, other=0.0).to(tl.float64)
            part = tl.where(may, score / total * ONE, 0.0).to(tl.int64)
            tl.store(share + t * TOP_K + j, part, mask=is_row)
            hit = (cols[None, :] == e[:, None]) & counted[:, None]
            counts += tl.sum(hit.to(tl.int64), axis=0)
            if j == 0:
                keepers += tl.sum(hit.to(tl.int64), axis=0)
            else:
                keepers += tl.sum((hit & (may == 0)[:, None]).to(tl.int64), axis=0)

    # How much rows suffer, by the best expert they would get instead: pruning.saliency.
    tl.debug_barrier()
    for start in range(0, rows, BLOCK_T):
        t = start + tl.arange(0, BLOCK_T)
        is_row = t < rows
        inside = is_row[:, None] & expert[None, :]
        place = t[:, None] * experts + cols[None, :]
        rank = tl.load(ranking + place, mask=inside, other=-float("inf"))
        closed = (rank == -float("inf")) | (counts == 0)[None, :]
        total = tl.zeros([BLOCK_T], dtype=tl.float64)
        own = tl.zeros([BLOCK_T], dtype=tl.int64)
        for j in tl.static_range(TOP_K):
            own += tl.load(share + t * TOP_K + j, mask=is_row, other=0)
            e = tl.load(plain + t * TOP_K + j, mask=is_row, other=0)
            closed = closed | (cols[None, :] == e[:, None])
            total += tl.load(scores + t * experts + e, mask=is_row, other=0.0).to(tl.float64)
        total = tl.maximum(total, 1e-300)
        row = tl.load(scores + place, mask=inside, other=0.0)
        instead = tl.max(tl.where(closed, 0.0, row), axis=1).to(tl.float64)
        changes = is_row & (own > 0)  # real, and may be changed
        for j in tl.static_range(TOP_K):
            e = tl.load(plain + t * TOP_K + j, mask=is_row, other=0)
            score = tl.load(scores + t * experts + e, mask=is_row, other=0.0).to(tl.float64)
            net = tl.maximum(score - instead, 0.0) / total
            part = tl.where(changes, score / total * net * ONE, 0.0).to(tl.int64)
            hit = cols[None, :] == e[:, None]
            mass += tl.sum(tl.where(hit, part[:, None], 0), axis=0)

    now_first, now_second = _prices(
        counts, values, class_index, slope, base, experts, classes, max_tokens, BLOCK_E
    )
    more_first, more_second = _prices(
        counts + 1, values, class_index, slope, base, experts, classes, max_tokens, BLOCK_E
    )
    whole_first = tl.sum(now_first, axis=0) + tl.load(base)
    whole_second = tl.sum(now_second, axis=0) + tl.load(base + 1)
    # An empty batch of a layer without a base costs nothing; nothing of it goes, either.
    of_first = first_weight / tl.maximum(whole_first, 1e-300)
    of_second = second_weight / tl.maximum(whole_second, 1e-300)
    own = now_first * of_first + now_second * of_second
    another = more_first * of_first + more_second * of_second
    active = (counts > 0) & expert
    busy = tl.maximum(tl.sum(active.to(tl.int64), axis=0), 1)
    a_token = tl.sum(tl.where(active, another - own, 0.0), axis=0) / busy.to(tl.float64)
    saving = own - counts.to(tl.float64) * tl.maximum(a_token, 0.0)
    offered = active & (keepers == 0) & (saving > 0.0)
    price = mass.to(tl.float64) / tl.where(offered, saving, 1.0)
    price = tl.where(offered, price, float("inf"))
    tl.store(price_of + cols, price, mask=expert)
    state = tl.zeros([BLOCK_E], dtype=tl.int32)
    open_offers = offered
    for vote in tl.static_range(1, 3):
        tl.store(round_of + cols, state, mask=expert)
        tl.debug_barrier()
        # Experts that alone are too much for some row stay, and no longer count for others.
        too_much = tl.zeros([BLOCK_E], dtype=tl.int32)
        for start in range(0, rows, BLOCK_T):
            t = start + tl.arange(0, BLOCK_T)
            is_row = t < rows
            spent = _spent(plain, share, round_of, t, is_row, TOP_K)
            for j in tl.static_range(TOP_K):
                e = tl.load(plain + t * TOP_K + j, mask=is_row, other=0)
                part = tl.load(share + t * TOP_K + j, mask=is_row, other=0)
                over = (part > 0) & (spent + part > slack)
                hit = (cols[None, :] == e[:, None]) & over[:, None]
                too_much += tl.sum(hit.to(tl.int32), axis=0)
        open_offers = open_offers & (too_much == 0)
        tl.store(offered_of + cols, open_offers.to(tl.int32), mask=expert)
        tl.debug_barrier()
        # Rows add up their shares by price and object to what goes beyond their slack.
        objections = tl.zeros([BLOCK_E], dtype=tl.int32)
        for start in range(0, rows, BLOCK_T):
            t = start + tl.arange(0, BLOCK_T)
            is_row = t < rows
            spent = _spent(plain, share, round_of, t, is_row, TOP_K)
            for j in tl.static_range(TOP_K):
                e = tl.load(plain + t * TOP_K + j, mask=is_row, other=0)
                held = tl.load(share + t * TOP_K + j, mask=is_row, other=0)
                held = held * tl.load(offered_of + e, mask=is_row, other=0)
                own_price = tl.load(price_of + e, mask=is_row, other=0.0)
                at_stake = spent
                for i in tl.static_range(TOP_K):
                    other = tl.load(plain + t * TOP_K + i, mask=is_row, other=0)
                    part = tl.load(share + t * TOP_K + i, mask=is_row, other=0)
                    part = part * tl.load(offered_of + other, mask=is_row, other=0)
                    their_price = tl.load(price_of + other, mask=is_row, other=0.0)
                    sooner = (their_price < own_price) | ((their_price == own_price) & (other <= e))
                    at_stake += tl.where(sooner, part, 0)
                objects = (held > 0) & (at_stake > slack)
                hit = (cols[None, :] == e[:, None]) & objects[:, None]
                objections += tl.sum(hit.to(tl.int32), axis=0)
        goes = open_offers & (objections == 0)
        state = tl.where(goes, vote, state)
        open_offers = open_offers & (goes == 0)

    may_go = state > 0
    gone = price < lam * ONE * tl.sum(real_rows, axis=0).to(tl.float64)
    if BUDGETED:
        # What all earlier offers save, one after the other: no block sorts this well.
        tl.store(round_of + cols, state, mask=expert)
        tl.store(saving_of + cols, saving, mask=expert)
        tl.debug_barrier()
        saved = tl.zeros([BLOCK_E], dtype=tl.float64)
        for other in range(experts):
            one_round = tl.load(round_of + other)
            one_price = tl.load(price_of + other)
            cheaper = (one_price < price) | ((one_price == price) & (other < cols))
            ahead = (one_round < state) | ((one_round == state) & cheaper)
            saved += tl.where(ahead & (one_round > 0), tl.load(saving_of + other), 0.0)
        gone = gone | (saved < 1.0 - budget)
    gone = gone & may_go
    drops = tl.sum(gone.to(tl.int32), axis=0) > 0
    is_open = active & (gone == 0)

    after = tl.zeros([BLOCK_E], dtype=tl.int64)
    for start in range(0, rows, BLOCK_T):
        t = start + tl.arange(0, BLOCK_T)
        is_row = t < rows
        counted = is_row
        if DESCRIBED:
            counted = is_row & (tl.load(real + t, mask=is_row, other=0) != 0)
        inside = is_row[:, None] & expert[None, :]
        rank = tl.load(
            ranking + t[:, None] * experts + cols[None, :], mask=inside, other=-float("inf")
        )
        spare = tl.where(is_open[None, :], rank, -float("inf"))
        plain_sum = tl.zeros([BLOCK_T], dtype=tl.float32)
        total = tl.zeros([BLOCK_T], dtype=tl.float64)
        for j in tl.static_range(TOP_K):
            e = tl.load(plain + t * TOP_K + j, mask=is_row, other=0)
            spare = tl.where(cols[None, :] == e[:, None], -float("inf"), spare)
            plain_sum += tl.load(plain_weights + t * TOP_K + j, mask=is_row, other=0.0)
            total += tl.load(scores + t * experts + e, mask=is_row, other=0.0).to(tl.float64)
        total = tl.maximum(total, 1e-300)
        first = tl.load(plain + t * TOP_K, mask=is_row, other=0)
        kept_sum = tl.zeros([BLOCK_T], dtype=tl.float32)
        slots_left = tl.zeros([BLOCK_T], dtype=tl.float32)
        given_up = tl.zeros([BLOCK_T], dtype=tl.int64)
        changed = tl.zeros([BLOCK_T], dtype=tl.int32)
        for j in tl.static_range(TOP_K):
            e = tl.load(plain + t * TOP_K + j, mask=is_row, other=0)
            loses = (
                tl.sum(((cols[None, :] == e[:, None]) & gone[None, :]).to(tl.int32), axis=1) > 0
            ) & counted
            score = tl.load(scores + t * experts + e, mask=is_row, other=0.0).to(tl.float64)
            given_up += tl.where(loses, score / total * ONE, 0.0).to(tl.int64)
            best = tl.argmax(spare, axis=1).to(tl.int64)
            found = tl.max(spare, axis=1) > -float("inf")
            taken = loses & found
            spare = tl.where(
                taken[:, None] & (cols[None, :] == best[:, None]), -float("inf"), spare
            )
            chosen = tl.where(taken, best, tl.where(loses, first, e))
            in_use = (loses == 0) | found
            new = tl.load(scores + t * experts + chosen, mask=is_row, other=0.0)
            # Times 2^100 quotients are the same, and no sum is a denormal.
            kept_sum += tl.where(in_use, new * 1.2676506002282294e30, 0.0)
            slots_left += in_use.to(tl.float32)
            changed += loses.to(tl.int32)
            hit = (cols[None, :] == chosen[:, None]) & (counted & in_use)[:, None]
            after += tl.sum(hit.to(tl.int64), axis=0)
            tl.store(indices + t * TOP_K + j, chosen, mask=is_row)
            tl.store(used + t * TOP_K + j, in_use.to(tl.int8), mask=is_row)
        # Where all that is left has a score of 0, its experts weigh the same.
        equal = (kept_sum > 0.0) == 0
        below = tl.maximum(tl.where(equal, slots_left, kept_sum), 1.1754943508222875e-38)
        tl.store(lost + t, given_up.to(tl.float64) / ONE, mask=is_row)
        tl.debug_barrier()
        for j in tl.static_range(TOP_K):
            chosen = tl.load(indices + t * TOP_K + j, mask=is_row, other=0)
            in_use = tl.load(used + t * TOP_K + j, mask=is_row, other=0) != 0
            score = tl.load(scores + t * experts + chosen, mask=is_row, other=0.0)
            old = tl.load(plain_weights + t * TOP_K + j, mask=is_row, other=0.0)
            new = tl.where(equal, 1.0, score * 1.2676506002282294e30) / below * plain_sum
            new = tl.where(in_use, new, 0.0)
            tl.store(weights + t * TOP_K + j, tl.where(changed > 0, new, old), mask=is_row)

    then_first, then_second = _prices(
        after, values, class_index, slope, base, experts, classes, max_tokens, BLOCK_E
    )
    then = (tl.sum(then_first, axis=0) + tl.load(base)) * of_first + (
        tl.sum(then_second, axis=0) + tl.load(base + 1)
    ) * of_second
    no_cheaper = drops & (then >= whole_first * of_first + whole_second * of_second)
    tl.store(counts_out + cols, tl.where(no_cheaper, counts, after), mask=expert)
    if no_cheaper:
        for start in range(0, rows, BLOCK_T):
            t = start + tl.arange(0, BLOCK_T)
            is_row = t < rows
            tl.store(lost + t, tl.zeros([BLOCK_T], dtype=tl.float64), mask=is_row)
            for j in tl.static_range(TOP_K):
                slot = t * TOP_K + j
                tl.store(indices + slot, tl.load(plain + slot, mask=is_row), mask=is_row)
                tl.store(weights + slot, tl.load(plain_weights + slot, mask=is_row), mask=is_row)
                tl.store(used + slot, tl.full([BLOCK_T], 1, dtype=tl.int8), mask=is_row)
