/* Every row count of a request, from the schedule and the layout alone, and the order that decides. */
#include "port.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

/* Spans of ordinals: the request, or one per image by the counts given, never by gaps (RR-BUD-003). */
static void make_spans(struct plan *plan, bool per_image, int flagged, const struct json *images) {
    int64_t sum = 0, features;
    plan->span = take((images ? images->length : 0) + 1, sizeof *plan->span);
    if (!per_image) {
        plan->span[0].end = plan->num_visual;
        plan->num_spans = plan->num_visual > 0;
        return;
    }
    if (!images && flagged)
        refuse("images", "give the visual rows of every image", "is missing with scope image");
    for (const struct json *entry = images ? images->first : NULL; entry; entry = entry->next) {
        if (!json_integer(entry, 1, &features) || features > flagged - sum)
            refuse("images", "give counts of at least 1 that add up", "is not the %d visual rows", flagged);
        struct span span = {(int)sum, (int)(sum + features)};
        sum += features;
        if (span.end > plan->num_visual)
            span.end = plan->num_visual; /* a visual last row is counted, and is not routable */
        if (span.first < span.end)
            plan->span[plan->num_spans++] = span;
    }
    if (sum != flagged)
        refuse("images", "give counts that add up", "hold %d of %d visual rows", (int)sum, flagged);
}

static void make_budgets(struct plan *plan, const struct schedule *s) {
    int *pool = take((size_t)plan->num_spans, sizeof *pool);
    /* without visual rows nothing is decided (RR-BUD-002), nor without decisions (RR-CFG-009) */
    plan->num_decisions = plan->num_visual ? s->num_decisions : 0;
    plan->budgets = take((size_t)plan->num_decisions, sizeof *plan->budgets);
    plan->kept = take((size_t)plan->num_decisions, sizeof *plan->kept);
    for (int i = 0; i < plan->num_spans; i++)
        pool[i] = plan->span[i].end - plan->span[i].first;
    for (int j = 0; j < plan->num_decisions; j++) {
        plan->budgets[j] = take((size_t)plan->num_spans, sizeof(int));
        for (int i = 0; i < plan->num_spans; i++) {
            int n = plan->span[i].end - plan->span[i].first; /* of the original rows (RR-BUD-004) */
            plan->budgets[j][i] = budget(&s->decision[j].keep, n, s->min_keep, pool[i]);
            plan->kept[j] += plan->budgets[j][i];
            if (s->survivors) /* RR-POOL-004; else all are candidates again (RR-POOL-003) */
                pool[i] = plan->budgets[j][i];
        }
    }
}

struct plan *make_plan(const struct schedule *schedule, int num_layers, const struct json *visual,
                       const struct json *images) {
    struct plan *plan = take(1, sizeof *plan);
    int flagged = 0, row = 0;
    if (visual->length == 0)
        refuse("visual", "give at least one row", "is empty"); /* RR-ERR-005 */
    plan->num_rows = (int)visual->length;
    plan->num_layers = num_layers;
    plan->visual_rows = take(visual->length, sizeof *plan->visual_rows);
    for (const struct json *flag = visual->first; flag; flag = flag->next, row++) {
        if (flag->type != JSON_BOOL)
            refuse("visual", "give true or false per row", "row %d is %s", row, json_kind(flag));
        flagged += flag->number != 0;
        if (flag->number != 0 && flag->next) /* the mask says it (RR-POOL-002), not of the last row (RR-POOL-001) */
            plan->visual_rows[plan->num_visual++] = row;
    }
    make_spans(plan, schedule->per_image, flagged, images);
    make_budgets(plan, schedule);
    plan->kv_rows = take((size_t)num_layers, sizeof *plan->kv_rows);
    for (int layer = 0, j = 0; layer < num_layers; layer++) { /* RR-KV-001 */
        while (j < plan->num_decisions && schedule->decision[j].layer <= layer)
            j++;
        plan->kv_rows[layer] = plan->num_rows - plan->num_visual + (j ? plan->kept[j - 1] : plan->num_visual);
    }
    return plan;
}

struct place {
    float score;
    int place;
};

static int best_first(const void *left, const void *right) {
    const struct place *a = left, *b = right;
    if (a->score != b->score) /* -0.0 equals 0.0, infinities are ordinary (RR-SEL-002) */
        return a->score > b->score ? -1 : 1; /* RR-SEL-001 */
    return a->place < b->place ? -1 : 1; /* ties go to the lower ordinal (RR-SEL-003) */
}

static int ascending(const void *left, const void *right) {
    int a = *(const int *)left, b = *(const int *)right;
    return (a > b) - (a < b);
}

/* The places of the k highest of n scores, ascending. */
void select_rows(const float *scores, int n, int k, int *places) {
    struct place *order = take((size_t)n, sizeof *order);
    char field[40];
    for (int i = 0; i < n; i++) {
        snprintf(field, sizeof field, "scores[%d]", i);
        if (isnan(scores[i])) /* RR-SEL-005 */
            refuse(field, "find what made it: a NaN has no place in the order", "is NaN");
        order[i] = (struct place){scores[i], i};
    }
    qsort(order, (size_t)n, sizeof *order, best_first);
    for (int i = 0; i < k; i++)
        places[i] = order[i].place;
    qsort(places, (size_t)k, sizeof *places, ascending); /* RR-SEL-004 */
}
