/* One request, routed: stages, decisions, caches, decode. A batch is a loop over requests, none of which sees another
 * (RR-EQV-004). */
#include "port.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

struct run {
    const struct decoder *d;
    const struct schedule *schedule;
    const struct request *request;
    const char *prefix;        /* of the names of outputs */
    int index;                 /* in the batch */
    int64_t first;             /* position of the first row, unless positions are given */
    float *x;                  /* [S, d], the residual stream; a row that no block runs stays as it is */
    bool *alive;               /* [S], all unless rows were removed */
    bool *chosen;              /* [N], A_j: the routable rows that run */
    struct cache *cache;       /* per block, rows of earlier turns first */
    struct text *trace;
    struct tensor **outputs;
};

static struct position scalar(int64_t position) {
    return (struct position){{position, position, position}};
}

static struct position position(const struct run *r, int row) { /* the unrouted one, whatever runs (RR-BLOCK-002) */
    const int64_t *given = r->request->positions;
    size_t rows = (size_t)r->request->plan->num_rows, i = (size_t)row;
    if (given && r->request->axes == 3)
        return (struct position){{given[i], given[rows + i], given[2 * rows + i]}};
    return scalar(given ? given[i] : r->first + row);
}

/* Whether a prompt row runs: text always, routable rows where chosen (RR-POOL-005). */
static bool *active_rows(const struct run *r) {
    const struct plan *plan = r->request->plan;
    bool *active = take((size_t)plan->num_rows, sizeof *active);
    memset(active, true, (size_t)plan->num_rows);
    for (int v = 0; v < plan->num_visual; v++)
        active[plan->visual_rows[v]] = r->chosen[v];
    return active;
}

/* Copies the states of the rows that are there to the output `residuals.LAYER`. */
static void keep_residual(const struct run *r, int layer) {
    size_t rows = 0, width = (size_t)r->d->hidden;
    float *copy = take((size_t)r->request->plan->num_rows * width, sizeof *copy);
    for (int row = 0; row < r->request->plan->num_rows; row++)
        if (r->alive[row])
            memcpy(copy + width * rows++, r->x + width * (size_t)row, width * sizeof *copy);
    add_tensor(r->outputs, copy, 2, (size_t[]){rows, width}, "%srequests.%d.residuals.%d", r->prefix, r->index,
               layer);
}

/* Scores of all prompt rows at the input of a block; those of rows that are not in U stay 0 (RR-SCORE-001). */
static float *score(const struct run *r, int layer) {
    const struct decoder *d = r->d;
    const struct plan *plan = r->request->plan;
    size_t width = (size_t)(d->kv_heads * d->head_dim);
    int *row_of = take((size_t)plan->num_rows, sizeof *row_of), count = 0;
    for (int row = 0; row < plan->num_rows; row++) /* U: all rows, under delete those alive (RR-SCORE-002) */
        if (r->alive[row])
            row_of[count++] = row;
    float *normed = take((size_t)d->hidden, sizeof *normed), *scores = take((size_t)plan->num_rows, sizeof *scores);
    int before = r->cache[layer].rows; /* of earlier turns: they are in U, and no candidates (RR-KV-007) */
    float *keys = take((size_t)(before + count) * width, sizeof *keys);
    if (before)
        memcpy(keys, r->cache[layer].keys, (size_t)before * width * sizeof *keys);
    float *query = take((size_t)(d->heads * d->head_dim), sizeof *query);
    /* the last row asks (RR-SCORE-009), or the last n of U (RR-SCORE-004) */
    int asking = r->schedule->last_n && r->schedule->n < count ? (int)r->schedule->n : r->schedule->last_n ? count : 1;
    double *given = take((size_t)(d->heads * count), sizeof *given), *weights = take((size_t)(before + count), sizeof *weights);
    for (int u = 0; u < count; u++) { /* of a deferred row the state it was left with (RR-SCORE-008) */
        rms_norm(r->x + (size_t)row_of[u] * (size_t)d->hidden, d->block[layer].input_norm, d->hidden, d->eps, normed);
        make_key(d, layer, normed, position(r, row_of[u]), keys + (size_t)(before + u) * width);
        if (u < count - asking)
            continue;
        make_query(d, layer, normed, position(r, row_of[u]), query);
        for (int head = 0; head < d->heads; head++) {
            softmax_row(d, query, keys, head, before + u + 1, weights); /* causally; a later candidate is given 0 */
            for (int i = 0; i <= u; i++)
                given[head * count + i] += weights[before + i];
        }
    }
    for (int u = 0; u < count; u++) { /* rows are averaged first, heads are reduced last (RR-SCORE-004) */
        double sum = 0, largest = 0;
        for (int head = 0; head < d->heads; head++) {
            sum += given[head * count + u] / asking;
            largest = fmax(largest, given[head * count + u] / asking);
        }
        /* nothing is narrowed until here (RR-SCORE-003); fmax would hide a NaN */
        scores[row_of[u]] = isnan(sum) || !r->schedule->max_heads ? (float)(sum / d->heads) : (float)largest;
    }
    return scores;
}

/* The rows of a decision that the request brings with it (RR-NUM-003). */
static void read_given(const struct run *r, int j, const struct json *given, const bool *pool, bool *selected) {
    const struct plan *plan = r->request->plan;
    static const char field[] = "decisions", remedy[] = "give as many ascending candidates as the plan keeps";
    int64_t ordinal, before = -1;
    if (given->type != JSON_ARRAY)
        refuse(field, remedy, "decision %d is %s", j + 1, json_kind(given));
    for (const struct json *entry = given->first; entry; entry = entry->next, before = ordinal) {
        if (!json_integer(entry, before + 1, &ordinal) || ordinal >= plan->num_visual || !pool[ordinal])
            refuse(field, remedy, "decision %d is not an ascending choice of candidates", j + 1);
        selected[ordinal] = true;
    }
    for (int i = 0; i < plan->num_spans; i++) {
        int count = 0;
        for (int v = plan->span[i].first; v < plan->span[i].end; v++)
            count += selected[v];
        if (count != plan->budgets[j][i])
            refuse(field, remedy, "decision %d has %d rows of a span, the budget is %d", j + 1, count,
                   plan->budgets[j][i]);
    }
}

/* The best candidates of every span (RR-SEL-001, RR-BUD-003). */
static void select_best(const struct plan *plan, int j, const float *scores, const bool *pool, bool *selected) {
    float *of_pool = take((size_t)plan->num_visual, sizeof *of_pool);
    int *ordinals = take((size_t)plan->num_visual, sizeof *ordinals);
    int *places = take((size_t)plan->num_visual, sizeof *places);
    for (int i = 0; i < plan->num_spans; i++) {
        int count = 0;
        for (int v = plan->span[i].first; v < plan->span[i].end; v++)
            if (pool[v]) {
                of_pool[count] = scores[plan->visual_rows[v]];
                ordinals[count++] = v;
            }
        select_rows(of_pool, count, plan->budgets[j][i], places);
        for (int k = 0; k < plan->budgets[j][i]; k++)
            selected[ordinals[places[k]]] = true;
    }
}

/* Smallest (s_k - s_(k+1)) / s_k of the spans that have one; NaN where none has (RR-POOL-006). */
static double margin(const struct plan *plan, const float *scores, const bool *pool, const bool *selected) {
    double smallest = NAN;
    for (int i = 0; i < plan->num_spans; i++) {
        double lowest = INFINITY, highest = -INFINITY;
        for (int v = plan->span[i].first; v < plan->span[i].end; v++) {
            double s = scores[plan->visual_rows[v]];
            if (pool[v] && selected[v])
                lowest = fmin(lowest, s);
            else if (pool[v])
                highest = fmax(highest, s);
        }
        if (highest > -INFINITY && lowest != 0 && !isinf(lowest))
            smallest = fmin(smallest, (lowest - highest) / lowest); /* fmin leaves a NaN out */
    }
    return smallest;
}

static void put_ordinals(struct text *text, const char *name, int n, const bool *in, const bool *not_in) {
    const char *comma = "";
    put(text, ",\"%s\":[", name);
    for (int v = 0; v < n; v++)
        if ((!in || in[v]) && (!not_in || !not_in[v])) {
            put(text, "%s%d", comma, v);
            comma = ",";
        }
    put(text, "]");
}

/* The record of a decision (RR-POOL-006). */
static void put_record(const struct run *r, int j, const bool *pool, const float *scores, const bool *selected,
                       const bool *would) {
    const struct plan *plan = r->request->plan;
    const char *comma = "";
    int n = plan->num_visual;
    double found = margin(plan, scores, pool, selected);
    put(r->trace, "%s{\"layer\":%d,\"stage\":%d", j ? "," : "", r->schedule->decision[j].layer, j + 1);
    put_ordinals(r->trace, "pool", n, pool, NULL);
    put(r->trace, ",\"scores\":[");
    for (int v = 0; v < n; v++)
        if (pool[v]) {
            put(r->trace, "%s%.17g", comma, (double)scores[plan->visual_rows[v]]);
            comma = ",";
        }
    put(r->trace, "]");
    put_ordinals(r->trace, "selected", n, selected, NULL);
    put_ordinals(r->trace, "deferred", n, NULL, selected);       /* D_j = V \ A_j (RR-POOL-005) */
    put_ordinals(r->trace, "reentered", n, selected, r->chosen); /* E_j = A_j \ A_(j-1) */
    put(r->trace, isnan(found) ? ",\"margin\":null" : ",\"margin\":%.17g", found);
    if (would)
        put_ordinals(r->trace, "would_select", n, would, NULL);
    put(r->trace, "%s}", would ? "" : ",\"would_select\":null");
}

/* Decision j: who are candidates, how they score, who runs. */
static void decide(struct run *r, int j, const struct json *given) {
    const struct plan *plan = r->request->plan;
    size_t n = (size_t)plan->num_visual;
    int layer = r->schedule->decision[j].layer;
    bool *pool = take(n, sizeof *pool), *selected = take(n, sizeof *selected), *best = take(n, sizeof *best);
    for (size_t v = 0; v < n; v++) /* RR-POOL-003, RR-POOL-004 */
        pool[v] = r->schedule->survivors ? r->chosen[v] : true;
    if (given)
        read_given(r, j, given, pool, selected);
    float *scores = score(r, layer);
    for (size_t v = 0; v < n; v++) {
        char field[40];
        snprintf(field, sizeof field, "scores[%zu]", v);
        if (pool[v] && isnan(scores[plan->visual_rows[v]])) /* RR-SEL-005 */
            refuse(field, "find what made it: weights or embeddings hold NaN, or overflow",
                   "is NaN at block %d, row %d", layer, plan->visual_rows[v]);
    }
    select_best(plan, j, scores, pool, best);
    put_record(r, j, pool, scores, given ? selected : best, given ? best : NULL);
    memcpy(r->chosen, given ? selected : best, n * sizeof *selected);
    if (r->schedule->deleting) /* the others are gone for good (RR-BLOCK-007) */
        r->alive = active_rows(r);
}

static void prefill(struct run *r) {
    const struct plan *plan = r->request->plan;
    const struct json *given = r->request->decisions;
    if (given && given->length != (size_t)plan->num_decisions) /* RR-NUM-003 */
        refuse("decisions", "give one selection per decision", "%zu of %d", given->length, plan->num_decisions);
    const struct json *next = given ? given->first : NULL;
    const bool *active = active_rows(r);
    for (int layer = 0, j = 0; layer < r->d->num_layers; layer++) {
        if (j < plan->num_decisions && r->schedule->decision[j].layer == layer) {
            keep_residual(r, layer); /* before the decision, and before its block runs */
            decide(r, j++, next);
            next = next ? next->next : NULL;
            active = active_rows(r);
        }
        for (int row = 0; row < plan->num_rows; row++) /* in prompt order; the others bypass (RR-BLOCK-001) */
            if (active[row])
                run_row(r->d, layer, r->x + (size_t)row * (size_t)r->d->hidden, position(r, row), &r->cache[layer]);
    }
    keep_residual(r, r->d->num_layers);
}

/* Logits of all rows, a deferred one with the state it was left with (RR-BLOCK-008), or of the survivors. */
static void keep_logits(const struct run *r) {
    const struct decoder *d = r->d;
    size_t rows = 0, vocabulary = (size_t)d->vocabulary;
    float *logits = take((size_t)r->request->plan->num_rows * vocabulary, sizeof *logits);
    for (int row = 0; row < r->request->plan->num_rows; row++)
        if (r->alive[row])
            make_logits(d, r->x + (size_t)row * (size_t)d->hidden, logits + vocabulary * rows++);
    add_tensor(r->outputs, logits, 2, (size_t[]){rows, vocabulary}, "%srequests.%d.logits", r->prefix, r->index);
}

/* Everything that the blocks have cached. */
void keep_caches(const struct decoder *d, const char *prefix, int index, const struct held *held,
                 struct tensor **outputs) {
    size_t h = (size_t)d->head_dim, heads = (size_t)d->kv_heads;
    for (int layer = 0; layer < d->num_layers; layer++) {
        size_t rows = (size_t)held->cache[layer].rows;
        for (int part = 0; part < 2; part++) {
            const float *from = part ? held->cache[layer].values : held->cache[layer].keys;
            float *copy = take(rows * heads * h, sizeof *copy);
            for (size_t i = 0; i < rows; i++)
                for (size_t head = 0; head < heads; head++)
                    memcpy(copy + (head * rows + i) * h, from + (i * heads + head) * h, h * sizeof *copy);
            add_tensor(outputs, copy, 3, (size_t[]){heads, rows, h}, "%srequests.%d.%s.%d", prefix, index,
                       part ? "values" : "keys", layer);
        }
    }
}

/* Room for what the next rows cache, taken once, exactly (RR-KV-001). What was there is copied: another request may
 * go on from it too (RR-KV-010). */
static void make_room(const struct decoder *d, struct held *held, int layer, int rows) {
    size_t width = (size_t)(d->kv_heads * d->head_dim);
    struct cache *cache = &held->cache[layer], larger = {cache->rows, NULL, NULL};
    larger.keys = take((size_t)(cache->rows + rows) * width, sizeof(float));
    larger.values = take((size_t)(cache->rows + rows) * width, sizeof(float));
    if (cache->rows) {
        memcpy(larger.keys, cache->keys, (size_t)cache->rows * width * sizeof(float));
        memcpy(larger.values, cache->values, (size_t)cache->rows * width * sizeof(float));
    }
    *cache = larger;
}

struct held new_held(const struct decoder *d) {
    return (struct held){take((size_t)d->num_layers, sizeof(struct cache)), 0, 0, take(1, sizeof(int64_t))};
}

/* A copy whose blocks can grow by itself. */
static struct held grown(const struct decoder *d, const struct held *held) {
    struct held copy = *held;
    copy.cache = take((size_t)d->num_layers, sizeof *copy.cache);
    memcpy(copy.cache, held->cache, (size_t)d->num_layers * sizeof *copy.cache);
    return copy;
}

static int64_t largest(struct position at) {
    int64_t two = at.axis[0] > at.axis[1] ? at.axis[0] : at.axis[1];
    return two > at.axis[2] ? two : at.axis[2];
}

/* Counts a new row: one after the largest coordinate so far, deferred rows included (RR-KV-004). */
static void count_row(struct held *held, int64_t position, bool routed) {
    int since = routed ? 0 : held->since + 1;
    int64_t last = held->next[held->since], *next = take((size_t)since + 1, sizeof *next);
    if (!routed)
        memcpy(next, held->next, (size_t)since * sizeof *next);
    next[since] = position >= last ? position + 1 : last;
    held->next = next;
    held->since = since;
    held->length++;
}

/* One token after the prompt: it runs every block and joins every cache (RR-KV-002). */
void run_token(const struct decoder *d, int64_t token, struct held *held, float *logits) {
    size_t width = (size_t)d->hidden;
    int64_t position = held->next[held->since];
    float *x = take(width, sizeof *x);
    *held = grown(d, held);
    memcpy(x, d->embed + (size_t)token * width, width * sizeof *x);
    for (int layer = 0; layer < d->num_layers; layer++) {
        make_room(d, held, layer, 1);
        run_row(d, layer, x, scalar(position), &held->cache[layer]);
    }
    count_row(held, position, false);
    make_logits(d, x, logits);
}

/* Feeds the continuation, token by token. */
static void decode(const struct run *r, struct held *held) {
    const struct json *tokens = r->request->continuation;
    size_t vocabulary = (size_t)r->d->vocabulary, step = 0;
    float *logits = take(tokens->length * vocabulary, sizeof *logits);
    struct held next = *held;
    int64_t token;
    for (const struct json *entry = tokens->first; entry; entry = entry->next, step++) {
        if (!json_integer(entry, 0, &token) || token >= r->d->vocabulary)
            refuse("continuation", "give tokens of the vocabulary", "entry %zu is not one", step);
        run_token(r->d, token, &next, logits + step * vocabulary);
    }
    add_tensor(r->outputs, logits, 2, (size_t[]){tokens->length, vocabulary}, "%srequests.%d.decode_logits", r->prefix,
               r->index);
}

/* A prefill, or a later turn over what was held: its new rows only, whose images are a pool of their own (RR-KV-007). */
void run_turn(const struct decoder *d, const struct schedule *schedule, const struct request *request,
              const char *prefix, int index, struct held *held, struct text *trace, struct tensor **outputs) {
    const struct plan *plan = request->plan;
    size_t rows = (size_t)plan->num_rows, width = (size_t)d->hidden;
    *held = grown(d, held);
    struct run r = {d, schedule, request, prefix, index, held->next[held->since], take(rows * width, sizeof(float)),
                    take(rows, sizeof(bool)), take((size_t)plan->num_visual, sizeof(bool)), held->cache, trace, outputs};
    memcpy(r.x, request->embeddings, rows * width * sizeof(float));
    memset(r.alive, true, rows);
    memset(r.chosen, true, (size_t)plan->num_visual); /* A_0 = V */
    for (int layer = 0; layer < d->num_layers; layer++)
        make_room(d, held, layer, plan->kv_rows[layer]);
    put(trace, "{\"num_rows\":%d,\"visual_rows\":[", plan->num_rows);
    for (int v = 0; v < plan->num_visual; v++)
        put(trace, "%s%d", v ? "," : "", plan->visual_rows[v]);
    put(trace, "],\"decisions\":[");
    prefill(&r);
    put(trace, "],\"kv_rows\":[");
    for (int layer = 0; layer < d->num_layers; layer++)
        put(trace, "%s%d", layer ? "," : "", r.cache[layer].rows);
    put(trace, "]}");
    for (int row = 0; row < plan->num_rows; row++) /* states of deferred rows end here (RR-KV-008) */
        count_row(held, largest(position(&r, row)), plan->num_decisions > 0);
    keep_logits(&r);
    keep_caches(d, prefix, index, held, outputs);
    if (request->continuation)
        decode(&r, held);
}
