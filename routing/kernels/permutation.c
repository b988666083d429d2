/* Rows of each expert side by side: a counting pass over the slots of a routed batch.
 *
 * An expert's rows start where the counts before it add up to, and each slot's place is that start
 * and how many slots came to its expert before it: nothing is sorted.
 */

#include <stdint.h>

/* expert [slots]; used [slots] (0 or 1); counts [experts], of used slots; next [experts] is scratch.
 * Out: slots_at, places [slots], each the inverse of the other; slots that are not used come last.
 * Returns 0, or -1 where the counts are not those of the slots. */
int costprof_permutation(int64_t slots, int64_t experts, const int64_t *expert, const uint8_t *used,
                         const int64_t *counts, int64_t *next, int64_t *slots_at,
                         int64_t *places) {
    int64_t total = 0;
    for (int64_t e = 0; e < experts; e++) {
        if (counts[e] < 0 || counts[e] > slots - total) return -1;
        next[e] = total;
        total += counts[e];
    }
    int64_t rest = total;
    for (int64_t s = 0; s < slots; s++) {
        if (used[s] && (expert[s] < 0 || expert[s] >= experts)) return -1;
        int64_t place = used[s] ? next[expert[s]]++ : rest++;
        if (place >= slots) return -1;
        slots_at[place] = s;
        places[s] = place;
    }
    int64_t end = 0;
    for (int64_t e = 0; e < experts; e++) {
        end += counts[e];
        if (next[e] != end) return -1;
    }
    return 0;
}
