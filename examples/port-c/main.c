/* The protocol of spec/FORMATS.md: a line of JSON comes in on standard input, a line goes out on standard output. */
#include "port.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A config case: a schedule, right or wrong, and the rows that every block would run. */
static void answer_config(const struct json *inputs, struct text *out) {
    int num_layers = json_size(inputs, "num_layers", 1);
    const struct schedule *schedule = read_schedule(json_get(inputs, "schedule"), num_layers);
    const struct plan *plan =
        make_plan(schedule, num_layers, json_need(inputs, "visual", JSON_ARRAY), json_get(inputs, "images"));
    put(out, "{\"kv_rows\":[[");
    for (int layer = 0; layer < num_layers; layer++)
        put(out, "%s%d", layer ? "," : "", plan->kv_rows[layer]);
    put(out, "]]}");
}

/* A select case: scores as numbers or as the bits of float32. */
static void answer_select(const struct json *inputs, struct text *out) {
    const struct json *given = json_get(inputs, "scores"), *bits = json_get(given, "float32_bits");
    const struct json *list = bits ? bits : json_need(inputs, "scores", JSON_ARRAY);
    int n = (int)list->length, i = 0;
    float *scores = take((size_t)n, sizeof *scores);
    for (const struct json *entry = list->first; entry; entry = entry->next, i++) {
        if (entry->type != JSON_NUMBER)
            refuse("scores", "give a number per candidate", "entry %d is %s", i, json_kind(entry));
        int64_t wide;
        if (bits) {
            if (!json_integer(entry, INT32_MIN, &wide) || wide > INT32_MAX)
                refuse("scores", "give int32 bit patterns", "entry %d is none", i);
            int32_t pattern = (int32_t)wide;
            memcpy(&scores[i], &pattern, sizeof pattern);
        } else {
            scores[i] = (float)entry->number;
        }
    }
    int64_t k;
    if (!json_integer(json_get(inputs, "k"), 0, &k) || k > n) /* RR-SEL-001 */
        refuse("k", "give an integer from 0 to the number of scores", "is not from 0 to %d", n);
    int *places = take((size_t)k, sizeof *places);
    select_rows(scores, n, (int)k, places);
    put(out, "{\"selected\":[");
    for (i = 0; i < (int)k; i++)
        put(out, "%s%d", i ? "," : "", places[i]);
    put(out, "]}");
}

static const struct tensor *named(const struct json *request, const char *key, const struct tensor *tensors) {
    return find_tensor(tensors, json_need(json_need(request, key, JSON_OBJECT), "tensor", JSON_STRING)->text);
}

/* A request of the batch. Its padding ends here: only the real rows go on (RR-EQV-005). */
struct request read_request(const struct json *data, const struct decoder *d, const struct schedule *schedule,
                            const struct tensor *tensors) {
    struct request request = {0};
    const struct json *visual = json_need(data, "visual", JSON_ARRAY);
    request.plan = make_plan(schedule, d->num_layers, visual, json_get(data, "images"));
    size_t left = json_get(data, "pad_left") ? (size_t)json_size(data, "pad_left", 0) : 0;
    size_t right = json_get(data, "pad_right") ? (size_t)json_size(data, "pad_right", 0) : 0;
    const struct tensor *embeddings = named(data, "embeddings", tensors);
    if (!embeddings->values || embeddings->axes != 2 || embeddings->size[0] != left + visual->length + right ||
        embeddings->size[1] != (size_t)d->hidden)
        refuse("embeddings", "give [pad_left + S + pad_right, d]", "have another shape or dtype");
    request.embeddings = embeddings->values + left * (size_t)d->hidden;
    if (json_get(data, "positions")) {
        const struct tensor *positions = named(data, "positions", tensors);
        bool three = d->mrope && positions->axes == 2 && positions->size[0] == 3;
        if (!positions->integers || (positions->axes != 1 && !three) || positions->size[three] != visual->length)
            refuse("positions", d->mrope ? "give int64 [S] or [3, S]" : "give int64 [S]", "have another shape or dtype");
        request.positions = positions->integers;
        request.axes = three ? 3 : 1;
    }
    if (json_get(data, "decisions"))
        request.decisions = json_need(data, "decisions", JSON_ARRAY);
    if (json_get(data, "continuation"))
        request.continuation = json_need(data, "continuation", JSON_ARRAY);
    return request;
}

/* A trace or route case, a batch through the canonical decoder, or a session of several. */
static void answer_run(const struct json *inputs, const struct json *message, struct text *out) {
    const struct json *config = json_need(json_need(inputs, "decoder", JSON_OBJECT), "config", JSON_OBJECT);
    int num_layers = json_size(json_need(config, "shape", JSON_OBJECT), "num_layers", 1), index = 0;
    const struct schedule *schedule = read_schedule(json_get(inputs, "schedule"), num_layers); /* RR-CFG-008 */
    const struct json *section = json_get(config, "mrope_section");
    if (schedule->renumber && section && section->type != JSON_NULL) /* RR-CFG-011 */
        refuse("positions", "use preserve", "are of three coordinates, which cannot be renumbered");
    if (schedule->renumber || schedule->previous)
        skip("positions renumber and score source previous are not part of this port");
    if (json_get(message, "dtype") && !json_is(json_get(message, "dtype"), "float32"))
        skip("this port computes in float32");
    const struct tensor *tensors = read_tensors(json_need(message, "tensors", JSON_STRING)->text);
    const struct decoder *d = read_decoder(json_get(inputs, "decoder"), tensors);
    struct tensor *outputs = NULL;
    if (json_is(json_get(message, "kind"), "session")) {
        run_session(d, schedule, json_need(inputs, "operations", JSON_ARRAY), tensors, out, &outputs);
    } else {
        const struct json *requests = json_need(inputs, "requests", JSON_ARRAY);
        struct request *request = take(requests->length, sizeof *request);
        for (const struct json *data = requests->first; data; data = data->next)
            request[index++] = read_request(data, d, schedule, tensors);
        put(out, "{\"traces\":[");
        for (int i = 0; i < index; i++) {
            struct held held = new_held(d);
            put(out, i ? "," : "");
            run_turn(d, schedule, &request[i], "", i, &held, out, &outputs);
        }
        put(out, "],\"tensors\":{");
    }
    write_tensors(json_need(message, "output", JSON_STRING)->text, outputs);
    for (const struct tensor *t = outputs; t; t = t->next)
        put(out, "%s\"%s\":\"%s\"", t == outputs ? "" : ",", t->name, t->name);
    put(out, "}}");
}

/* One line per case: a result, or why there is none. */
static void answer_case(const struct json *message, long long seq) {
    struct text *out = take(1, sizeof *out);
    if (setjmp(refused) == 0) {
        const struct json *kind = json_get(message, "kind");
        const struct json *inputs = json_need(message, "inputs", JSON_OBJECT);
        put(out, "{\"type\":\"result\",\"seq\":%lld,\"result\":", seq);
        if (json_is(kind, "config"))
            answer_config(inputs, out);
        else if (json_is(kind, "select"))
            answer_select(inputs, out);
        else if (json_is(kind, "trace") || json_is(kind, "route") || json_is(kind, "session"))
            answer_run(inputs, message, out);
        else
            skip("cases of this kind are not part of this port");
        put(out, "}");
    } else {
        out->length = 0;
        put(out, "{\"type\":\"%s\",\"seq\":%lld,\"%s\":", refusal.skipped ? "skipped" : "error", seq,
            refusal.skipped ? "reason" : "message");
        put_string(out, refusal.message);
        if (!refusal.skipped) {
            put(out, ",\"field\":");
            put_string(out, refusal.field);
            put(out, ",\"remedy\":");
            put_string(out, refusal.remedy);
        }
        put(out, "}");
    }
    puts(out->bytes);
}

/* The next line, without its end, as a string; NULL where there is none. */
static char *read_line(size_t *length) {
    size_t capacity = 1 << 16;
    char *line = take(capacity, 1);
    int letter;
    *length = 0;
    while ((letter = getchar()) != EOF && letter != '\n') {
        if (*length + 1 == capacity) {
            char *longer = take(capacity *= 2, 1);
            memcpy(longer, line, *length);
            line = longer;
        }
        line[(*length)++] = (char)letter;
    }
    line[*length] = 0;
    return letter == EOF && *length == 0 ? NULL : line;
}

int main(void) {
    size_t length;
    int64_t seq;
    for (char *line; (line = read_line(&length)); release()) {
        const struct json *message = json_parse(line, length), *type = json_get(message, "type");
        if (json_is(type, "bye"))
            break;
        if (json_is(type, "hello")) {
            puts("{\"type\":\"capabilities\",\"protocol\":1,\"name\":\"port-c\",\"dtypes\":[\"float32\"],"
                 "\"profiles\":[\"core\",\"stagewise\",\"gqa\",\"mrope\",\"batch\",\"cache\",\"session\"]}");
        } else if (json_is(type, "case") && json_integer(json_get(message, "seq"), 0, &seq)) {
            answer_case(message, seq);
        } else {
            fprintf(stderr, "a line is no message: %.200s\n", line);
            return 1;
        }
        fflush(stdout);
    }
    release();
    return 0;
}
