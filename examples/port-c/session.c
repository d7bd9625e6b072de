/* A session: prefills, later turns, decode, crop, requests that move in the batch; one operation after another. */
#include "port.h"

#include <string.h>

struct batch {
    int count;
    struct held *held; /* per request */
};

/* Turns of every request; a prefill begins with nothing held. */
static void forward(const struct decoder *d, const struct schedule *schedule, const struct json *operation, bool anew,
                    const struct tensor *tensors, const char *prefix, struct batch *batch, struct text *out,
                    struct tensor **outputs) {
    const struct json *requests = json_need(operation, "requests", JSON_ARRAY);
    int index = 0;
    if (!anew && (size_t)batch->count != requests->length)
        refuse("requests", "give one turn per request", "are %zu of %d", requests->length, batch->count);
    if (anew) { /* nothing of a request reaches the next (RR-KV-006) */
        batch->count = (int)requests->length;
        batch->held = take(requests->length, sizeof *batch->held);
        for (int i = 0; i < batch->count; i++)
            batch->held[i] = new_held(d);
    }
    put(out, ",\"traces\":[");
    for (const struct json *data = requests->first; data; data = data->next, index++) {
        struct request request = read_request(data, d, schedule, tensors);
        put(out, index ? "," : "");
        run_turn(d, schedule, &request, prefix, index, &batch->held[index], out, outputs);
    }
    put(out, "]");
}

static void decode(const struct decoder *d, const struct json *operation, const char *prefix, struct batch *batch,
                   struct tensor **outputs) {
    const struct json *tokens = json_need(operation, "tokens", JSON_ARRAY);
    int index = 0;
    int64_t token;
    if (tokens->length != (size_t)batch->count)
        refuse("tokens", "give one per request", "are %zu of %d", tokens->length, batch->count);
    for (const struct json *entry = tokens->first; entry; entry = entry->next, index++) {
        float *logits = take((size_t)d->vocabulary, sizeof *logits);
        if (!json_integer(entry, 0, &token) || token >= d->vocabulary)
            refuse("tokens", "give tokens of the vocabulary", "entry %d is not one", index);
        run_token(d, token, &batch->held[index], logits);
        add_tensor(outputs, logits, 2, (size_t[]){1, (size_t)d->vocabulary}, "%srequests.%d.logits", prefix, index);
    }
}

/* Whether the newest rows can go: they are in every cache while no turn was routed after them (RR-KV-009). */
static bool crop(const struct decoder *d, int rows, struct batch *batch) {
    for (int i = 0; i < batch->count; i++)
        if (rows > batch->held[i].since)
            return false;
    for (int i = 0; i < batch->count; i++) {
        struct held *held = &batch->held[i];
        struct cache *cut = take((size_t)d->num_layers, sizeof *cut);
        for (int layer = 0; layer < d->num_layers; layer++) {
            cut[layer] = held->cache[layer];
            cut[layer].rows -= rows;
        }
        *held = (struct held){cut, held->length - rows, held->since - rows, held->next};
    }
    return true;
}

/* Requests move whole: caches, length and next position together (RR-KV-010). */
static void move(const struct json *operation, struct batch *batch) {
    const struct json *order = json_need(operation, "order", JSON_ARRAY);
    struct held *moved = take(order->length, sizeof *moved);
    int64_t place;
    int index = 0;
    for (const struct json *entry = order->first; entry; entry = entry->next) {
        if (!json_integer(entry, 0, &place) || place >= batch->count)
            refuse("order", "give requests of the batch", "entry %d is none", index);
        moved[index++] = batch->held[place];
    }
    *batch = (struct batch){index, moved};
}

static void repeat(int times, struct batch *batch) {
    struct held *moved = take((size_t)(batch->count * times), sizeof *moved);
    for (int i = 0; i < batch->count * times; i++)
        moved[i] = batch->held[i / times];
    *batch = (struct batch){batch->count * times, moved};
}

void run_session(const struct decoder *d, const struct schedule *schedule, const struct json *operations,
                 const struct tensor *tensors, struct text *out, struct tensor **outputs) {
    struct batch batch = {0};
    int step = 0;
    put(out, "{\"steps\":[");
    for (const struct json *operation = operations->first; operation; operation = operation->next, step++) {
        const struct json *op = json_get(operation, "op");
        struct text *name = take(1, sizeof *name), *shown = take(1, sizeof *shown);
        bool anew = json_is(op, "prefill");
        put(name, "steps.%d.", step);
        put(shown, "%s", "");
        if (anew || json_is(op, "turn")) {
            forward(d, schedule, operation, anew, tensors, name->bytes, &batch, shown, outputs);
        } else if (json_is(op, "decode")) {
            decode(d, operation, name->bytes, &batch, outputs);
        } else if (json_is(op, "crop")) {
            if (!crop(d, json_size(operation, "rows", 0), &batch)) {
                put(out, "%s{\"refused\":{\"field\":\"crop\",\"message\":\"reaches past the last routed turn\","
                         "\"remedy\":\"drop rows that came after it\"}}", step ? "," : "");
                continue;
            }
        } else if (json_is(op, "repeat")) {
            repeat(json_size(operation, "times", 1), &batch);
        } else {
            move(operation, &batch);
        }
        if (!anew && !json_is(op, "turn")) /* those have kept theirs */
            for (int i = 0; i < batch.count; i++)
                keep_caches(d, name->bytes, i, &batch.held[i], outputs);
        put(out, "%s{\"lengths\":[", step ? "," : "");
        for (int i = 0; i < batch.count; i++)
            put(out, "%s%lld", i ? "," : "", (long long)batch.held[i].length);
        put(out, "]%s}", shown->bytes);
    }
    put(out, "],\"tensors\":{");
}
