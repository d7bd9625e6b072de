/* Reading JSON into a tree. */
#include "port.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define DEEPEST 64

struct reader {
    const char *at, *end;
    int depth;
};

static struct json *read_value(struct reader *r);

static void skip_space(struct reader *r) {
    while (r->at < r->end && strchr(" \t\r\n", *r->at) && *r->at)
        r->at++;
}

static bool accept(struct reader *r, const char *word) {
    size_t length = strlen(word);
    if ((size_t)(r->end - r->at) < length || memcmp(r->at, word, length) != 0)
        return false;
    r->at += length;
    return true;
}

static struct json *new_value(enum json_type type) {
    struct json *value = take(1, sizeof *value);
    value->type = type;
    return value;
}

static bool is_digit(char letter) { return letter >= '0' && letter <= '9'; }

static bool skip_digits(struct reader *r) {
    const char *start = r->at;
    while (is_digit(*r->at)) /* the text ends in a zero byte */
        r->at++;
    return r->at > start;
}

static struct json *read_number(struct reader *r) {
    const char *start = r->at;
    accept(r, "-");
    if (!accept(r, "0") && !skip_digits(r))
        return NULL;
    if (accept(r, ".") && !skip_digits(r))
        return NULL;
    if (*r->at == 'e' || *r->at == 'E') {
        r->at++;
        if (!accept(r, "+"))
            accept(r, "-");
        if (!skip_digits(r))
            return NULL;
    }
    struct json *value = new_value(JSON_NUMBER);
    value->number = strtod(start, NULL);
    return value;
}

static bool read_hex(struct reader *r, unsigned *code) {
    *code = 0;
    for (int i = 0; i < 4; i++) {
        char letter = *r->at;
        if (is_digit(letter))
            *code = *code * 16 + (unsigned)(letter - '0');
        else if (letter >= 'a' && letter <= 'f')
            *code = *code * 16 + (unsigned)(letter - 'a' + 10);
        else if (letter >= 'A' && letter <= 'F')
            *code = *code * 16 + (unsigned)(letter - 'A' + 10);
        else
            return false;
        r->at++;
    }
    return true;
}

static char *write_utf8(char *out, unsigned code) {
    if (code < 0x80) {
        *out++ = (char)code;
    } else if (code < 0x800) {
        *out++ = (char)(0xC0 | code >> 6);
        *out++ = (char)(0x80 | (code & 0x3F));
    } else if (code < 0x10000) {
        *out++ = (char)(0xE0 | code >> 12);
        *out++ = (char)(0x80 | (code >> 6 & 0x3F));
        *out++ = (char)(0x80 | (code & 0x3F));
    } else {
        *out++ = (char)(0xF0 | code >> 18);
        *out++ = (char)(0x80 | (code >> 12 & 0x3F));
        *out++ = (char)(0x80 | (code >> 6 & 0x3F));
        *out++ = (char)(0x80 | (code & 0x3F));
    }
    return out;
}

static bool read_escape(struct reader *r, char **out) {
    static const char letters[] = "\"\\/bfnrt", meanings[] = "\"\\/\b\f\n\r\t";
    const char *place = *r->at ? strchr(letters, *r->at) : NULL;
    unsigned code, low;
    if (place) {
        r->at++;
        *(*out)++ = meanings[place - letters];
        return true;
    }
    if (!accept(r, "u") || !read_hex(r, &code))
        return false;
    if (code >= 0xD800 && code < 0xDC00 && accept(r, "\\u")) {
        if (!read_hex(r, &low))
            return false;
        code = low >= 0xDC00 && low < 0xE000 ? 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00) : 0xFFFD;
    }
    *out = write_utf8(*out, code >= 0xD800 && code < 0xE000 ? 0xFFFD : code); /* half a pair is no letter */
    return true;
}

static bool read_text(struct reader *r, const char **text, size_t *length) {
    if (!accept(r, "\""))
        return false;
    const char *close = r->at;
    while (close < r->end && *close != '"')
        close += *close == '\\' && close + 1 < r->end ? 2 : 1;
    char *start = take((size_t)(close - r->at) + 1, 1), *out = start; /* no escape is shorter than its meaning */
    while (r->at < r->end && *r->at != '"') {
        if ((unsigned char)*r->at < 0x20)
            return false;
        if (!accept(r, "\\"))
            *out++ = *r->at++;
        else if (!read_escape(r, &out))
            return false;
    }
    *text = start;
    *length = (size_t)(out - start);
    return accept(r, "\"");
}

static struct json *read_entries(struct reader *r, enum json_type type, const char *close) {
    struct json *all = new_value(type), **last = &all->first;
    if (++r->depth > DEEPEST)
        return NULL;
    for (skip_space(r); !accept(r, close); skip_space(r)) {
        const char *key = NULL;
        size_t key_length = 0;
        if (all->first && !accept(r, ","))
            return NULL;
        skip_space(r);
        if (type == JSON_OBJECT) {
            if (!read_text(r, &key, &key_length))
                return NULL;
            skip_space(r);
            if (!accept(r, ":"))
                return NULL;
        }
        if (!(*last = read_value(r)))
            return NULL;
        (*last)->key = key;
        (*last)->key_length = key_length;
        last = &(*last)->next;
        all->length++;
    }
    r->depth--;
    return all;
}

static struct json *read_value(struct reader *r) {
    struct json *value;
    skip_space(r);
    if (accept(r, "{"))
        return read_entries(r, JSON_OBJECT, "}");
    if (accept(r, "["))
        return read_entries(r, JSON_ARRAY, "]");
    if (r->at < r->end && *r->at == '"') {
        value = new_value(JSON_STRING);
        return read_text(r, &value->text, &value->length) ? value : NULL;
    }
    if (accept(r, "null"))
        return new_value(JSON_NULL);
    if (accept(r, "true")) {
        value = new_value(JSON_BOOL);
        value->number = 1;
        return value;
    }
    return accept(r, "false") ? new_value(JSON_BOOL) : read_number(r);
}

struct json *json_parse(const char *text, size_t length) {
    struct reader r = {text, text + length, 0};
    struct json *value = read_value(&r);
    skip_space(&r);
    return r.at == r.end ? value : NULL;
}

const struct json *json_get(const struct json *object, const char *key) {
    if (!object || object->type != JSON_OBJECT)
        return NULL;
    for (const struct json *entry = object->first; entry; entry = entry->next)
        if (entry->key_length == strlen(key) && memcmp(entry->key, key, entry->key_length) == 0)
            return entry;
    return NULL;
}

const struct json *json_need(const struct json *object, const char *key, enum json_type type) {
    const struct json *value = json_get(object, key);
    if (!value || value->type != type) /* RR-ERR-005 */
        refuse(key, "see the protocol in spec/FORMATS.md", "is %s", json_kind(value));
    return value;
}

bool json_is(const struct json *value, const char *word) {
    return value && value->type == JSON_STRING && value->length == strlen(word) &&
           memcmp(value->text, word, value->length) == 0;
}

bool json_integer(const struct json *value, int64_t least, int64_t *integer) {
    if (!value || value->type != JSON_NUMBER || value->number != floor(value->number)) /* 3.0 is 3 (RR-CFG-001) */
        return false;
    /* an integer of more than 18 digits is larger than any number of rows, and stays so */
    double clipped = fmax(-1e18, fmin(1e18, value->number));
    *integer = (int64_t)clipped;
    return *integer >= least;
}

int json_size(const struct json *object, const char *key, int least) {
    int64_t size = 0;
    if (!json_integer(json_get(object, key), least, &size) || size > 1 << 24)
        refuse(key, "give an integer", "is %s, not an integer from %d on", json_kind(json_get(object, key)), least);
    return (int)size;
}

const char *json_kind(const struct json *value) {
    static const char *const kinds[] = {"null", "a bool", "a number", "a string", "an array", "an object"};
    return value ? kinds[value->type] : "missing";
}
