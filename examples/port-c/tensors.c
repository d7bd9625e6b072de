/* Reading and writing safetensors files: eight bytes that say how long the header is, the header (a JSON object with
 * dtype, shape and place of every tensor), the values. Numbers are little-endian, as this program assumes it is. */
#include "port.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char FIELD[] = "tensors", REMEDY[] = "give a readable safetensors file of F32 and I64";

static char *read_file(const char *path, size_t *length) {
    FILE *file = fopen(path, "rb");
    if (!file)
        refuse(FIELD, REMEDY, "%s cannot be opened", path);
    fseek(file, 0, SEEK_END);
    long size = ftell(file);
    rewind(file);
    char *bytes = take(size < 0 ? 1 : (size_t)size + 1, 1);
    *length = size < 0 ? 0 : fread(bytes, 1, (size_t)size, file);
    fclose(file);
    return bytes;
}

static struct tensor *read_tensor(const struct json *entry, const char *data, size_t room) {
    const struct json *places = json_need(entry, "data_offsets", JSON_ARRAY);
    const struct json *shape = json_need(entry, "shape", JSON_ARRAY);
    int64_t from, to, size;
    size_t count = 1;
    struct tensor *tensor = take(1, sizeof *tensor);
    tensor->name = entry->key;
    if (places->length != 2 || !json_integer(places->first, 0, &from) ||
        !json_integer(places->first->next, from, &to) || (size_t)to > room || shape->length > 3)
        refuse(FIELD, REMEDY, "%s lies outside the file", tensor->name);
    for (const struct json *axis = shape->first; axis; axis = axis->next) {
        if (!json_integer(axis, 0, &size) || (size && count > room / (size_t)size))
            refuse(FIELD, REMEDY, "%s has a shape that does not fit the file", tensor->name);
        tensor->size[tensor->axes++] = (size_t)size;
        count *= (size_t)size;
    }
    bool wide = json_is(json_get(entry, "dtype"), "I64");
    size_t bytes = count * (wide ? sizeof(int64_t) : sizeof(float));
    if ((!wide && !json_is(json_get(entry, "dtype"), "F32")) || bytes != (size_t)(to - from))
        refuse(FIELD, REMEDY, "%s is not of dtype F32 or I64, or of another length", tensor->name);
    void *values = take(bytes + 1, 1); /* copied: in the file they need not be aligned */
    memcpy(values, data + from, bytes);
    if (wide)
        tensor->integers = values;
    else
        tensor->values = values;
    return tensor;
}

struct tensor *read_tensors(const char *path) {
    size_t length;
    uint64_t header = 0;
    char *bytes = read_file(path, &length);
    if (length >= 8)
        memcpy(&header, bytes, 8);
    if (length < 8 || header > length - 8)
        refuse(FIELD, REMEDY, "%s is no safetensors file", path);
    char *text = take(header + 1, 1); /* a copy that ends in a zero byte */
    memcpy(text, bytes + 8, header);
    const struct json *root = json_parse(text, header);
    if (!root || root->type != JSON_OBJECT)
        refuse(FIELD, REMEDY, "the header of %s is no JSON object", path);
    struct tensor *first = NULL;
    for (const struct json *entry = root->first; entry; entry = entry->next)
        if (strcmp(entry->key, "__metadata__") != 0) {
            struct tensor *tensor = read_tensor(entry, bytes + 8 + header, length - 8 - header);
            tensor->next = first;
            first = tensor;
        }
    return first;
}

static size_t bytes_of(const struct tensor *tensor) {
    size_t count = sizeof(float);
    for (int axis = 0; axis < tensor->axes; axis++)
        count *= tensor->size[axis];
    return count;
}

void write_tensors(const char *path, const struct tensor *first) {
    struct text header = {0};
    size_t place = 0;
    put(&header, "{");
    for (const struct tensor *t = first; t; t = t->next) {
        put(&header, "%s\"%s\":{\"dtype\":\"F32\",\"shape\":[", t == first ? "" : ",", t->name);
        for (int axis = 0; axis < t->axes; axis++)
            put(&header, "%s%zu", axis ? "," : "", t->size[axis]);
        put(&header, "],\"data_offsets\":[%zu,%zu]}", place, place + bytes_of(t));
        place += bytes_of(t);
    }
    put(&header, "}");
    while (header.length % 8)
        put(&header, " ");
    uint64_t length = header.length;
    FILE *file = fopen(path, "wb");
    bool written = file && fwrite(&length, 8, 1, file) == 1 && fwrite(header.bytes, header.length, 1, file) == 1;
    for (const struct tensor *t = first; t && written; t = t->next)
        written = fwrite(t->values, 1, bytes_of(t), file) == bytes_of(t);
    if (!file || fclose(file) != 0 || !written)
        refuse("output", "give the path of a file that can be written", "%s cannot be written", path);
}

const struct tensor *find_tensor(const struct tensor *first, const char *name) {
    for (; first; first = first->next)
        if (strcmp(first->name, name) == 0)
            return first;
    refuse(FIELD, "give all tensors that the inputs name", "%s is missing", name);
}

struct tensor *add_tensor(struct tensor **first, const float *values, int axes, const size_t *size,
                          const char *name, ...) {
    struct tensor *tensor = take(1, sizeof *tensor);
    char *words = take(80, 1);
    va_list arguments;
    va_start(arguments, name);
    vsnprintf(words, 80, name, arguments);
    va_end(arguments);
    tensor->name = words;
    tensor->values = values;
    tensor->axes = axes;
    for (int axis = 0; axis < axes; axis++)
        tensor->size[axis] = size[axis];
    while (*first)
        first = &(*first)->next;
    return *first = tensor;
}
