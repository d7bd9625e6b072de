/* The canonical decoder, one row at a time. What one operation hands to the next is float32, the dtype of the case;
 * sums inside an operation, angles and the softmax are double. That is what RR-BLOCK-004 to RR-BLOCK-006 allow ("at least
 * float32", "may accumulate wider"), and it makes the order of a sum matter little (RR-NUM-001). */
#include "port.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* A weight by its name; columns 0 for a vector. */
static const float *weight(const struct tensor *tensors, int rows, int columns, const char *format, ...) {
    char name[200];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(name, sizeof name, format, arguments);
    va_end(arguments);
    const struct tensor *t = find_tensor(tensors, name);
    if (!t->values || t->axes != (columns ? 2 : 1) || t->size[0] != (size_t)rows ||
        (columns && t->size[1] != (size_t)columns))
        refuse(name, "matrices are [out, in], see spec/60-blocks.md", "has another shape or dtype");
    return t->values;
}

static double number(const struct json *config, const char *key, double otherwise) {
    const struct json *value = json_get(config, key);
    return value && value->type == JSON_NUMBER ? value->number : otherwise;
}

static void read_block(const struct decoder *d, struct block *block, const struct tensor *all, const char *at,
                       bool biased, bool normed) {
    int d_ = d->hidden, m = d->intermediate, query = d->heads * d->head_dim, key = d->kv_heads * d->head_dim;
    block->input_norm = weight(all, d_, 0, "%sinput_layernorm.weight", at);
    block->post_norm = weight(all, d_, 0, "%spost_attention_layernorm.weight", at);
    block->q = weight(all, query, d_, "%sself_attn.q_proj.weight", at);
    block->k = weight(all, key, d_, "%sself_attn.k_proj.weight", at);
    block->v = weight(all, key, d_, "%sself_attn.v_proj.weight", at);
    block->o = weight(all, d_, query, "%sself_attn.o_proj.weight", at);
    block->q_bias = biased ? weight(all, query, 0, "%sself_attn.q_proj.bias", at) : NULL;
    block->k_bias = biased ? weight(all, key, 0, "%sself_attn.k_proj.bias", at) : NULL;
    block->v_bias = biased ? weight(all, key, 0, "%sself_attn.v_proj.bias", at) : NULL;
    block->q_norm = normed ? weight(all, d->head_dim, 0, "%sself_attn.q_norm.weight", at) : NULL;
    block->k_norm = normed ? weight(all, d->head_dim, 0, "%sself_attn.k_norm.weight", at) : NULL;
    block->gate = weight(all, m, d_, "%smlp.gate_proj.weight", at);
    block->up = weight(all, m, d_, "%smlp.up_proj.weight", at);
    block->down = weight(all, d_, m, "%smlp.down_proj.weight", at);
}

/* Which coordinate turns each pair: in sections one after the other, or interleaved (RR-BLOCK-012). */
static void read_axes(struct decoder *d, const struct json *config) {
    const struct json *section = json_get(config, "mrope_section"), *turns = json_get(config, "mrope_interleaved");
    int pairs = d->head_dim / 2, count[3], total = 0, axis = 0;
    d->axis = take((size_t)pairs, sizeof *d->axis);
    d->mrope = section && section->type != JSON_NULL;
    if (!d->mrope)
        return;
    for (const struct json *entry = section->first; entry; entry = entry->next, axis++) {
        int64_t wide;
        if (axis == 3 || !json_integer(entry, 0, &wide) || wide > pairs)
            refuse("mrope_section", "give three counts that add up to half a head", "has another form");
        total += count[axis] = (int)wide;
    }
    if (axis != 3 || total != pairs)
        refuse("mrope_section", "give three counts that add up to half a head", "has another form");
    for (int i = 0; i < pairs; i++) {
        if (turns && turns->number != 0)
            d->axis[i] = i % 3 && i < 3 * count[i % 3] ? i % 3 : 0;
        else
            d->axis[i] = i < count[0] ? 0 : i < count[0] + count[1] ? 1 : 2;
    }
}

struct decoder *read_decoder(const struct json *data, const struct tensor *tensors) {
    struct decoder *d = take(1, sizeof *d);
    const struct json *config = json_need(data, "config", JSON_OBJECT);
    const struct json *shape = json_need(config, "shape", JSON_OBJECT);
    const char *prefix = json_need(data, "weights", JSON_STRING)->text;
    d->num_layers = json_size(shape, "num_layers", 1);
    d->hidden = json_size(shape, "hidden_size", 1);
    d->intermediate = json_size(shape, "intermediate_size", 1);
    d->heads = json_size(shape, "num_attention_heads", 1);
    d->kv_heads = json_size(shape, "num_key_value_heads", 1);
    d->head_dim = json_size(shape, "head_dim", 1);
    d->vocabulary = json_size(config, "vocab_size", 1);
    if (d->head_dim % 2 || d->heads % d->kv_heads)
        refuse("decoder", "give even heads, and key heads that divide the heads", "has sizes that do not fit");
    read_axes(d, config);
    d->eps = number(config, "rms_norm_eps", 1e-6);
    d->theta = number(config, "rope_theta", 10000);
    const struct json *bias = json_get(config, "attention_bias"), *norm = json_get(config, "qk_norm");
    bool biased = bias && bias->number != 0, normed = norm && norm->number != 0;
    d->embed = weight(tensors, d->vocabulary, d->hidden, "%.80sembed_tokens.weight", prefix);
    d->norm = weight(tensors, d->hidden, 0, "%.80snorm.weight", prefix);
    d->head = weight(tensors, d->vocabulary, d->hidden, "%.80slm_head.weight", prefix);
    d->block = take((size_t)d->num_layers, sizeof *d->block);
    for (int layer = 0; layer < d->num_layers; layer++) {
        char at[120];
        snprintf(at, sizeof at, "%.80slayers.%d.", prefix, layer);
        read_block(d, &d->block[layer], tensors, at, biased, normed);
    }
    return d;
}

/* out = W x + bias */
static void project(const float *matrix, const float *bias, const float *x, int rows, int columns, float *out) {
    for (int i = 0; i < rows; i++) {
        double sum = bias ? bias[i] : 0;
        for (int j = 0; j < columns; j++)
            sum += (double)matrix[(size_t)i * (size_t)columns + (size_t)j] * x[j];
        out[i] = (float)sum;
    }
}

void rms_norm(const float *x, const float *scale, int size, double eps, float *out) { /* RR-BLOCK-004 */
    double squares = 0;
    for (int i = 0; i < size; i++)
        squares += (double)x[i] * x[i];
    double root = sqrt(squares / size + eps);
    for (int i = 0; i < size; i++)
        out[i] = scale[i] * (float)(x[i] / root); /* the quotient is rounded, then multiplied */
}

static void rotate(const struct decoder *d, float *head, struct position at) { /* RR-BLOCK-005 */
    int half = d->head_dim / 2;
    for (int i = 0; i < half; i++) {
        double angle = (double)at.axis[d->axis[i]] * pow(d->theta, -2.0 * i / d->head_dim);
        float cosine = (float)cos(angle), sine = (float)sin(angle), a = head[i], b = head[i + half];
        head[i] = (float)((double)a * cosine - (double)b * sine);
        head[i + half] = (float)((double)b * cosine + (double)a * sine);
    }
}

/* Norm per head where there is one, then rotation (RR-BLOCK-006). */
static void finish_heads(const struct decoder *d, float *heads, int count, const float *norm, struct position at) {
    for (int i = 0; i < count; i++) {
        float *head = heads + (size_t)i * (size_t)d->head_dim;
        if (norm)
            rms_norm(head, norm, d->head_dim, d->eps, head);
        rotate(d, head, at);
    }
}

void make_query(const struct decoder *d, int layer, const float *normed, struct position at, float *query) {
    const struct block *block = &d->block[layer];
    project(block->q, block->q_bias, normed, d->heads * d->head_dim, d->hidden, query);
    finish_heads(d, query, d->heads, block->q_norm, at);
}

void make_key(const struct decoder *d, int layer, const float *normed, struct position at, float *key) {
    const struct block *block = &d->block[layer];
    project(block->k, block->k_bias, normed, d->kv_heads * d->head_dim, d->hidden, key);
    finish_heads(d, key, d->kv_heads, block->k_norm, at);
}

/* The attention that one query head gives the first `rows` of keys [rows, K, h] (RR-BLOCK-006). */
void softmax_row(const struct decoder *d, const float *query, const float *keys, int head, int rows,
                 double *weights) {
    size_t h = (size_t)d->head_dim, key_head = (size_t)(head * d->kv_heads / d->heads); /* floor(i K / H) */
    double largest = -INFINITY, sum = 0;
    for (int u = 0; u < rows; u++) {
        const float *q = query + (size_t)head * h, *k = keys + ((size_t)u * (size_t)d->kv_heads + key_head) * h;
        double logit = 0;
        for (size_t i = 0; i < h; i++)
            logit += (double)q[i] * k[i];
        weights[u] = logit / sqrt((double)d->head_dim);
        largest = fmax(largest, weights[u]);
    }
    for (int u = 0; u < rows; u++)
        sum += weights[u] = exp(weights[u] - largest);
    for (int u = 0; u < rows; u++)
        weights[u] /= sum;
}

/* Runs one row through one block, in place, and appends it to the block's cache. The row sees what the cache holds and
 * itself: rows that are run in prompt order are one causal sequence (RR-BLOCK-003), a decoded row is like any other
 * (RR-KV-002), and what was not run is in no cache (RR-BLOCK-001, RR-KV-001). */
void run_row(const struct decoder *d, int layer, float *x, struct position at, struct cache *cache) {
    const struct block *block = &d->block[layer];
    size_t h = (size_t)d->head_dim, width = (size_t)d->kv_heads * h;
    int heads = d->heads * d->head_dim, rows = cache->rows + 1;
    float *normed = take((size_t)d->hidden, sizeof(float)), *added = take((size_t)d->hidden, sizeof(float));
    float *query = take((size_t)heads, sizeof(float)), *joined = take((size_t)heads, sizeof(float));
    float *gate = take((size_t)d->intermediate, sizeof(float)), *up = take((size_t)d->intermediate, sizeof(float));
    double *weights = take((size_t)rows, sizeof(double));

    rms_norm(x, block->input_norm, d->hidden, d->eps, normed);
    make_query(d, layer, normed, at, query);
    make_key(d, layer, normed, at, cache->keys + (size_t)cache->rows * width);
    project(block->v, block->v_bias, normed, (int)width, d->hidden, cache->values + (size_t)cache->rows * width);
    cache->rows = rows;
    for (int head = 0; head < d->heads; head++) {
        size_t key_head = (size_t)(head * d->kv_heads / d->heads);
        softmax_row(d, query, cache->keys, head, rows, weights);
        for (size_t i = 0; i < h; i++) {
            double sum = 0;
            for (int u = 0; u < rows; u++) /* the probability is rounded before it weights a value */
                sum += (double)(float)weights[u] * cache->values[(size_t)u * width + key_head * h + i];
            joined[(size_t)head * h + i] = (float)sum;
        }
    }
    project(block->o, NULL, joined, d->hidden, heads, added);
    for (int i = 0; i < d->hidden; i++)
        x[i] += added[i];

    rms_norm(x, block->post_norm, d->hidden, d->eps, normed);
    project(block->gate, NULL, normed, d->intermediate, d->hidden, gate);
    project(block->up, NULL, normed, d->intermediate, d->hidden, up);
    for (int i = 0; i < d->intermediate; i++)
        gate[i] = (float)(gate[i] / (1 + exp(-(double)gate[i]))) * up[i];
    project(block->down, NULL, gate, d->hidden, d->intermediate, added);
    for (int i = 0; i < d->hidden; i++)
        x[i] += added[i];
}

void make_logits(const struct decoder *d, const float *x, float *logits) {
    float *normed = take((size_t)d->hidden, sizeof(float));
    rms_norm(x, d->norm, d->hidden, d->eps, normed);
    project(d->head, NULL, normed, d->vocabulary, d->hidden, logits);
}
