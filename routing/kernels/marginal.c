/* The decision of costprof.routing.policies.marginal on a CPU, in one pass.
 *
 * The same steps in the same arithmetic as the tensor code: gate mass in whole units of 2^-40,
 * prices in doubles. Sums of prices are added in the order of the experts.
 */
#include <float.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define ONE ((double)((int64_t)1 << 40))
/* Scores times this have the same quotients, and a sum that is no denormal. */
#define LARGE 0x1p100f

typedef struct {
    int64_t rows, experts, top_k, classes, max_tokens, slack; /* slack: units of 2^-40 */
    double weight[2], lam, budget;
    const double *values;       /* [(max_tokens + 1) * classes, 2] */
    const int64_t *class_index; /* [E] */
    const double *slope;        /* [E, 2] */
    const double *base;         /* [2] */
} Problem;

typedef struct {
    double price;
    int64_t expert;
} Offer;

static int by_price(const void *a, const void *b) {
    const Offer *x = a, *y = b;
    if (x->price != y->price) return x->price < y->price ? -1 : 1;
    return x->expert < y->expert ? -1 : x->expert > y->expert;
}

/* A whole number in the order of the floats: comparing those, unlike floats, is vectorised. */
static int32_t ordered(float x) {
    int32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits ^ ((bits >> 31) & 0x7fffffff);
}

static int32_t largest(const int32_t *keys, int64_t size) {
    int32_t most = INT32_MIN;
    for (int64_t e = 0; e < size; e++) most = keys[e] > most ? keys[e] : most;
    return most;
}

/* Whether all of a row is finite: no exponent is all ones. */
static int all_finite(const float *row, int64_t size) {
    int32_t broken = 0;
    for (int64_t e = 0; e < size; e++) {
        int32_t bits;
        memcpy(&bits, &row[e], sizeof bits);
        broken |= (bits & 0x7f800000) == 0x7f800000;
    }
    return !broken;
}

static double expert_price(const Problem *p, int64_t expert, int64_t count, int column) {
    int64_t within = count < p->max_tokens ? count : p->max_tokens;
    double price = p->values[2 * (within * p->classes + p->class_index[expert]) + column];
    return price + (double)(count - within) * p->slope[2 * expert + column];
}

static void layer_price(const Problem *p, const int64_t *counts, double whole[2]) {
    for (int column = 0; column < 2; column++) {
        double sum = 0.0;
        for (int64_t e = 0; e < p->experts; e++) sum += expert_price(p, e, counts[e], column);
        whole[column] = sum + p->base[column];
    }
}

/* Cost by the objective, in shares of `whole`; of a term that costs nothing there is no share. */
static double relative(const Problem *p, const double price[2], const double whole[2]) {
    double cost = 0.0;
    for (int column = 0; column < 2; column++)
        if (p->weight[column] > 0.0 && whole[column] > 0.0)
            cost += p->weight[column] * price[column] / whole[column];
    return cost;
}

/* What each expert's going saves, as a share of the layer's cost. */
static void savings(const Problem *p, const int64_t *counts, const double whole[2],
                    double *saving) {
    double a_token = 0.0;
    int64_t active = 0;
    for (int64_t e = 0; e < p->experts; e++) {
        double own[2], more[2];
        for (int column = 0; column < 2; column++) {
            own[column] = expert_price(p, e, counts[e], column);
            more[column] = expert_price(p, e, counts[e] + 1, column);
        }
        saving[e] = relative(p, own, whole);
        if (counts[e] > 0) {
            a_token += relative(p, more, whole) - saving[e];
            active++;
        }
    }
    if (active) a_token /= (double)active;
    if (a_token < 0.0) a_token = 0.0;
    for (int64_t e = 0; e < p->experts; e++) saving[e] -= (double)counts[e] * a_token;
}

/* Which of the `offered` experts, cheapest first, may all go; see pruning.drop_ranks.
 *
 * In each of two rounds rows add up their shares by price and object to what goes beyond their
 * slack; `state[e]` becomes the round after which expert e may go. `offers` [E] are in the order of
 * the experts; `objections` [E], `lost` [T] and `at_stake` [k] are scratch. Most rows cannot lose
 * too much whatever goes: only the others need an order.
 */
static void vote(const Problem *p, const int64_t *plain, const int64_t *share,
                 const Offer *offers, uint8_t *offered, uint8_t *state, int64_t *objections,
                 int64_t *lost, int64_t *at_stake) {
    const int64_t T = p->rows, E = p->experts, K = p->top_k;
    memset(lost, 0, (size_t)T * sizeof(int64_t));
    for (int round = 1; round <= 2; round++) {
        for (int64_t t = 0; t < T; t++)
            for (int64_t at = t * K; at < (t + 1) * K; at++)
                offered[plain[at]] &= (share[at] == 0) | (lost[t] + share[at] <= p->slack);
        memset(objections, 0, (size_t)E * sizeof(int64_t));
        for (int64_t t = 0; t < T; t++) {
            int64_t most = lost[t], sum = lost[t], n = 0;
            for (int64_t at = t * K; at < (t + 1) * K; at++)
                most += offered[plain[at]] ? share[at] : 0;
            if (most <= p->slack) continue;
            for (int64_t at = t * K; at < (t + 1) * K; at++) {
                if (!offered[plain[at]] || share[at] == 0) continue;
                int64_t to = n++;
                for (; to > 0; to--) {
                    if (by_price(&offers[plain[at_stake[to - 1]]], &offers[plain[at]]) <= 0) break;
                    at_stake[to] = at_stake[to - 1];
                }
                at_stake[to] = at;
            }
            for (int64_t i = 0; i < n; i++) {
                sum += share[at_stake[i]];
                objections[plain[at_stake[i]]] += sum > p->slack;
            }
        }
        for (int64_t e = 0; e < E; e++)
            if (offered[e] && objections[e] == 0) {
                state[e] = (uint8_t)round;
                offered[e] = 0;
            }
        for (int64_t t = 0; t < T; t++)
            for (int64_t at = t * K; at < (t + 1) * K; at++)
                lost[t] += state[plain[at]] == round ? share[at] : 0;
    }
}

/* Give the lost slots of one row the best spare experts, by ranking; the lowest index of equals.
 * A slot that finds none points at the row's first expert. A key is a ranking above an index
 * counted from the end, so the largest names its expert.
 */
static void refill(const Problem *p, const float *ranking, const int64_t *plain,
                   const uint8_t *open, int64_t *indices, uint8_t *used, int64_t *keys) {
    const int64_t E = p->experts, row = (int64_t)1 << 32;
    const int64_t forbidden = ordered(-INFINITY) * row + (row - 1);
    for (int64_t e = 0; e < E; e++)
        keys[e] = open[e] ? ordered(ranking[e]) * row + (E - 1 - e) : INT64_MIN;
    for (int64_t j = 0; j < p->top_k; j++) keys[plain[j]] = INT64_MIN;
    for (int64_t j = 0; j < p->top_k; j++) {
        if (open[plain[j]]) continue;
        int64_t most = INT64_MIN;
        for (int64_t e = 0; e < E; e++) most = keys[e] > most ? keys[e] : most;
        used[j] = most > forbidden;
        indices[j] = indices[0]; /* the first is always kept */
        if (!used[j]) continue;
        indices[j] = E - 1 - (most & (row - 1));
        keys[indices[j]] = INT64_MIN;
    }
}

/* How many of the `n` experts in `turn` are to go for the layer to be cheapest, the fewest of equals.
 * Rows' slots move as their experts go. `counts` [E] are plain top-k's, `open` [E] its experts,
 * `indices` and `used` its slots; all are scratch after.
 */
static int64_t cheapest(const Problem *p, const float *ranking, const int64_t *plain,
                        const uint8_t *real, const int64_t *turn, int64_t n,
                        const double whole[2], int64_t *counts, uint8_t *open, int64_t *indices,
                        uint8_t *used, int64_t *keys) {
    const int64_t T = p->rows, E = p->experts, K = p->top_k;
    double least = relative(p, whole, whole);
    int64_t best = 0;
    for (int64_t i = 0; i < n; i++) {
        double then[2];
        open[turn[i]] = 0;
        for (int64_t t = 0; t < T; t++) {
            int64_t *mine = indices + t * K;
            uint8_t *in_use = used + t * K;
            int holds = 0;
            if (real && !real[t]) continue;
            for (int64_t j = 0; j < K; j++) holds |= in_use[j] && mine[j] == turn[i];
            if (!holds) continue;
            for (int64_t j = 0; j < K; j++) counts[mine[j]] -= in_use[j];
            refill(p, ranking + t * E, plain + t * K, open, mine, in_use, keys);
            for (int64_t j = 0; j < K; j++) counts[mine[j]] += in_use[j];
        }
        layer_price(p, counts, then);
        if (relative(p, then, whole) < least) {
            least = relative(p, then, whole);
            best = i + 1;
        }
    }
    return best;
}

/* Returns 1 where anything changed, 0 where plain top-k stays, -1 where memory ran out.
 *
 * scores, ranking [T, E]; plain [T, k]; plain_weights [T, k]; real, changeable [T] (NULL: all).
 * Out: indices, weights, used [T, k]; lost [T]; counts [E], of used slots in real rows.
 */
int costprof_marginal(const Problem *p, const float *scores, const float *ranking,
                      const int64_t *plain, const float *plain_weights, const uint8_t *real,
                      const uint8_t *changeable, int64_t *indices, float *weights, uint8_t *used,
                      double *lost, int64_t *counts) {
    const int64_t T = p->rows, E = p->experts, K = p->top_k;
    int64_t *whole_numbers = calloc((size_t)(6 * E + T * (K + 1) + K), sizeof(int64_t));
    double *saving = malloc((size_t)E * sizeof(double));
    Offer *offers = malloc((size_t)E * sizeof(Offer));
    uint8_t *flags = calloc((size_t)(5 * E), 1);
    int changed = -1;
    int32_t *keys = malloc((size_t)E * sizeof(int32_t));
    if (!whole_numbers || !saving || !offers || !flags || !keys) goto done;
    int64_t *mass = whole_numbers, *keepers = mass + E, *after = keepers + E;
    int64_t *objections = after + E, *ranked = objections + E, *share = ranked + E;
    int64_t *row_lost = share + T * K, *at_stake = row_lost + T, *turn = at_stake + K;
    uint8_t *gone = flags, *open = gone + E, *awake = open + E, *offered = awake + E;
    uint8_t *state = offered + E;

    int64_t real_rows = 0;
    memset(counts, 0, (size_t)E * sizeof(int64_t));
    for (int64_t t = 0; t < T; t++) {
        const float *row = scores + t * E;
        const int64_t *chosen = plain + t * K;
        int may = changeable ? changeable[t] : 1;
        if (real && !real[t]) continue;
        real_rows++;
        may = may && all_finite(row, E);
        double total = 0.0;
        for (int64_t j = 0; j < K; j++) total += (double)row[chosen[j]];
        if (total < 1e-300) total = 1e-300; /* of scores that are all 0 */
        for (int64_t j = 0; j < K; j++) {
            int64_t e = chosen[j];
            int64_t part = may ? (int64_t)((double)row[e] / total * ONE) : 0;
            share[t * K + j] = part;
            keepers[e] += !may || j == 0;
            counts[e]++;
        }
    }
    for (int64_t e = 0; e < E; e++) awake[e] = counts[e] > 0;
    /* How much rows suffer, by the best expert they would get instead: pruning.saliency. */
    for (int64_t t = 0; t < T; t++) {
        const float *row = scores + t * E, *rank = ranking + t * E;
        const int64_t *chosen = plain + t * K;
        int64_t own = 0;
        for (int64_t j = 0; j < K; j++) own += share[t * K + j];
        if (own == 0) continue; /* not real, or not changeable */
        double total = 0.0;
        for (int64_t e = 0; e < E; e++) keys[e] = awake[e] ? ordered(row[e]) : 0;
        if (ranking != scores)
            for (int64_t e = 0; e < E; e++) keys[e] = rank[e] > -INFINITY ? keys[e] : 0;
        for (int64_t j = 0; j < K; j++) {
            total += (double)row[chosen[j]];
            keys[chosen[j]] = 0;
        }
        if (total < 1e-300) total = 1e-300;
        int32_t most = largest(keys, E); /* of scores, at least 0: their bits are in order */
        float instead;
        memcpy(&instead, &most, sizeof instead);
        for (int64_t j = 0; j < K; j++) {
            double score = (double)row[chosen[j]], less = score - (double)instead;
            if (less > 0.0) mass[chosen[j]] += (int64_t)(score / total * (less / total) * ONE);
        }
    }
    double whole[2], then[2];
    layer_price(p, counts, whole);
    savings(p, counts, whole, saving);
    for (int64_t e = 0; e < E; e++) {
        offered[e] = keepers[e] == 0 && saving[e] > 0.0;
        offers[e].price = offered[e] ? (double)mass[e] / saving[e] : INFINITY;
        offers[e].expert = e;
    }
    vote(p, plain, share, offers, offered, state, objections, row_lost, at_stake);
    int64_t n = 0;
    for (int64_t e = 0; e < E; e++)
        if (state[e]) offers[n++] = offers[e];
    if (p->budget < 1.0 || p->classes > 1) qsort(offers, (size_t)n, sizeof(Offer), by_price);
    double saved = 0.0, fair = p->lam * ONE * (double)real_rows;
    int64_t turns = 0; /* those aimed at the budget first, then the others by price */
    changed = 0;
    for (int round = 1; round <= 2; round++)
        for (int64_t at = 0; at < n; at++) {
            int64_t e = offers[at].expert;
            if (state[e] != round) continue;
            int aimed = p->budget < 1.0 && saved < 1.0 - p->budget;
            gone[e] = offers[at].price < fair || aimed;
            changed |= gone[e];
            saved += saving[e];
            if (!aimed) continue;
            turn[turns++] = e;
            state[e] = 0;
        }
    for (int64_t at = 0; at < n; at++)
        if (gone[offers[at].expert] && state[offers[at].expert]) turn[turns++] = offers[at].expert;
    memcpy(indices, plain, (size_t)(T * K) * sizeof(int64_t));
    memcpy(weights, plain_weights, (size_t)(T * K) * sizeof(float));
    memset(used, 1, (size_t)(T * K));
    memset(lost, 0, (size_t)T * sizeof(double));
    if (!changed) goto done;

    if (p->classes > 1) {
        for (int64_t e = 0; e < E; e++) open[e] = counts[e] > 0;
        memcpy(after, counts, (size_t)E * sizeof(int64_t));
        int64_t stay = cheapest(p, ranking, plain, real, turn, turns, whole, after, open, indices,
                                used, ranked);
        changed = stay > 0;
        for (; stay < turns; stay++) gone[turn[stay]] = 0;
        memset(after, 0, (size_t)E * sizeof(int64_t));
        memcpy(indices, plain, (size_t)(T * K) * sizeof(int64_t));
        memset(used, 1, (size_t)(T * K));
        if (!changed) goto done;
    }
    for (int64_t e = 0; e < E; e++) open[e] = counts[e] > 0 && !gone[e];
    for (int64_t t = 0; t < T; t++) {
        int64_t given_up = 0, loses = 0;
        if (real && !real[t]) continue;
        for (int64_t j = 0; j < K; j++) {
            int64_t e = plain[t * K + j];
            if (gone[e]) given_up += share[t * K + j], loses = 1;
        }
        if (loses) {
            int64_t *mine = indices + t * K;
            uint8_t *slot_used = used + t * K;
            refill(p, ranking + t * E, plain + t * K, open, mine, slot_used, ranked);
            float sum = 0.0f, total = 0.0f;
            for (int64_t j = 0; j < K; j++) {
                total += plain_weights[t * K + j];
                if (slot_used[j]) sum += scores[t * E + mine[j]] * LARGE;
            }
            /* Where all that is left has a score of 0, its experts weigh the same. */
            int equal = !(sum > 0.0f);
            for (int64_t j = 0; equal && j < K; j++) sum += slot_used[j];
            if (sum < FLT_MIN) sum = FLT_MIN;
            for (int64_t j = 0; j < K; j++) {
                float score = equal ? 1.0f : scores[t * E + mine[j]] * LARGE;
                weights[t * K + j] = slot_used[j] ? score / sum * total : 0.0f;
            }
            lost[t] = (double)given_up / ONE;
        }
        for (int64_t j = 0; j < K; j++) after[indices[t * K + j]] += used[t * K + j];
    }
    layer_price(p, after, then);
    if (relative(p, then, whole) >= relative(p, whole, whole)) {
        memcpy(indices, plain, (size_t)(T * K) * sizeof(int64_t));
        memcpy(weights, plain_weights, (size_t)(T * K) * sizeof(float));
        memset(used, 1, (size_t)(T * K));
        memset(lost, 0, (size_t)T * sizeof(double));
        changed = 0;
    } else {
        memcpy(counts, after, (size_t)E * sizeof(int64_t));
    }
done:
    free(whole_numbers);
    free(saving);
    free(offers);
    free(flags);
    free(keys);
    return changed;
}
