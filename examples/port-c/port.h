/* What the parts of the port share. Rule numbers (RR-...) are those of spec/. */
#ifndef PORT_H
#define PORT_H

#include <setjmp.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* ---- base.c: the memory of one case, text that grows, refusals ---- */

void *take(size_t count, size_t size); /* zeroed; all of it is given back by release */
void release(void);

struct text {
    char *bytes;
    size_t length, capacity;
};
void put(struct text *text, const char *format, ...);
void put_string(struct text *text, const char *string); /* as a JSON string */

struct refusal {
    bool skipped; /* not refused: this port does not do it, message says why */
    char field[160], message[400], remedy[400];
};
extern struct refusal refusal; /* of the case that is being answered */
extern jmp_buf refused;        /* where refuse and skip go */
_Noreturn void refuse(const char *field, const char *remedy, const char *format, ...);
_Noreturn void skip(const char *reason);

/* ---- json.c ---- */

enum json_type { JSON_NULL, JSON_BOOL, JSON_NUMBER, JSON_STRING, JSON_ARRAY, JSON_OBJECT };

struct json {
    enum json_type type;
    double number;            /* of a bool 0 or 1 */
    const char *text;         /* of a string: UTF-8, ends in a zero byte that is not counted */
    size_t length;            /* bytes of the string, entries of the array or object */
    const char *key;          /* in an object */
    size_t key_length;
    struct json *first, *next; /* entries; next entry of what this is in */
};
struct json *json_parse(const char *text, size_t length); /* NULL where it is no JSON; text[length] is 0 */
const struct json *json_get(const struct json *object, const char *key); /* NULL where there is none */
const struct json *json_need(const struct json *object, const char *key, enum json_type type);
bool json_is(const struct json *value, const char *word); /* whether it is that string */
bool json_integer(const struct json *value, int64_t least, int64_t *integer);
int json_size(const struct json *object, const char *key, int least); /* a needed integer */
const char *json_kind(const struct json *value);                      /* what it is, in a word */

/* ---- tensors.c: safetensors files ---- */

struct tensor {
    const char *name;
    int axes;
    size_t size[3];
    const float *values;     /* of dtype F32, else NULL */
    const int64_t *integers; /* of dtype I64, else NULL */
    struct tensor *next;
};
struct tensor *read_tensors(const char *path);
void write_tensors(const char *path, const struct tensor *first);
const struct tensor *find_tensor(const struct tensor *first, const char *name); /* refuses where there is none */
struct tensor *add_tensor(struct tensor **first, const float *values, int axes, const size_t *size,
                          const char *name, ...);

/* ---- exact.c: keeps, without floats ---- */

#define LIMBS 130 /* of nine decimal digits: the longest ratio that a schedule can spell has 1080 */
struct big {
    int length;
    uint32_t limb[LIMBS]; /* lowest first */
};
struct keep {
    bool is_count;
    int64_t count;           /* of rows */
    struct big over, under;  /* a ratio */
};
void read_keep(const struct json *value, const char *field, struct keep *keep);
bool keep_grows(const struct keep *from, const struct keep *to);
int budget(const struct keep *keep, int n, int64_t min_keep, int pool);

/* ---- schedule.c ---- */

struct decision {
    int layer;
    struct keep keep;
};
struct schedule {
    bool deleting, survivors, per_image, renumber, previous, last_n, max_heads;
    int64_t n, min_keep;
    int num_decisions;
    struct decision *decision;
};
struct schedule *read_schedule(const struct json *data, int64_t num_layers);

/* ---- plan.c: every row count, before the first block runs; selection ---- */

struct span {
    int first, end; /* ordinals */
};
struct plan {
    int num_rows, num_visual, num_layers, num_spans;
    int *visual_rows;  /* prompt row of every ordinal */
    struct span *span;
    int num_decisions; /* that are due: none without visual rows */
    int **budgets;     /* [decision][span] */
    int *kept;         /* rows per decision */
    int *kv_rows;      /* per block */
};
struct plan *make_plan(const struct schedule *schedule, int num_layers, const struct json *visual,
                       const struct json *images);
void select_rows(const float *scores, int n, int k, int *places);

/* ---- decoder.c: the canonical decoder ---- */

struct block {
    const float *input_norm, *post_norm, *q, *k, *v, *o, *q_bias, *k_bias, *v_bias, *q_norm, *k_norm;
    const float *gate, *up, *down;
};
struct position {
    int64_t axis[3]; /* time, height, width; all equal where positions are scalar */
};
struct decoder {
    int num_layers, hidden, intermediate, heads, kv_heads, head_dim, vocabulary;
    double eps, theta;
    bool mrope;
    int *axis; /* [h / 2], the coordinate that turns a pair of channels */
    struct block *block;
    const float *embed, *norm, *head;
};
struct cache {
    int rows;
    float *keys, *values; /* [rows, K, h] */
};
struct decoder *read_decoder(const struct json *data, const struct tensor *tensors);
void rms_norm(const float *x, const float *weight, int size, double eps, float *out);
void make_query(const struct decoder *d, int layer, const float *normed, struct position at, float *query);
void make_key(const struct decoder *d, int layer, const float *normed, struct position at, float *key);
void softmax_row(const struct decoder *d, const float *query, const float *keys, int head, int rows,
                 double *weights);
void run_row(const struct decoder *d, int layer, float *x, struct position at, struct cache *cache);
void make_logits(const struct decoder *d, const float *x, float *logits);

/* ---- route.c: one request, routed ---- */

struct request {
    struct plan *plan;
    const float *embeddings;  /* [S, d], padding gone */
    const int64_t *positions; /* [S] or, axes = 3, [3, S]; or NULL: S positions from the next one on */
    size_t axes;
    const struct json *decisions, *continuation; /* or NULL */
};
struct held { /* what a request keeps between turns */
    struct cache *cache; /* per block */
    int64_t length;      /* real rows so far (RR-KV-003) */
    int since;           /* rows since the last routed turn */
    int64_t *next;       /* [since + 1], the next position, at the end of that turn and after every row since (RR-KV-004) */
};
struct held new_held(const struct decoder *d);
void run_turn(const struct decoder *d, const struct schedule *schedule, const struct request *request,
              const char *prefix, int index, struct held *held, struct text *trace, struct tensor **outputs);
void run_token(const struct decoder *d, int64_t token, struct held *held, float *logits);
void keep_caches(const struct decoder *d, const char *prefix, int index, const struct held *held,
                 struct tensor **outputs);
struct request read_request(const struct json *data, const struct decoder *d, const struct schedule *schedule,
                            const struct tensor *tensors);

/* ---- session.c: operations one after another ---- */

void run_session(const struct decoder *d, const struct schedule *schedule, const struct json *operations,
                 const struct tensor *tensors, struct text *out, struct tensor **outputs);

#endif
