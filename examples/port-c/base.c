/* The memory of one case, text that grows, and refusals. */
#include "port.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct refusal refusal;
jmp_buf refused;

/* Everything that a case needs is taken from here and given back at once when it has been answered, so that a
 * refusal may leave any function at any place, and nothing of a case reaches the next (RR-ERR-001, RR-KV-006). */
static struct piece {
    struct piece *next;
    max_align_t bytes[];
} *pieces;

void *take(size_t count, size_t size) {
    struct piece *piece = NULL;
    if (size == 0 || count <= (SIZE_MAX - sizeof *piece) / size)
        piece = calloc(1, sizeof *piece + count * size);
    if (!piece) {
        fprintf(stderr, "no memory for %zu times %zu bytes\n", count, size);
        exit(1);
    }
    piece->next = pieces;
    pieces = piece;
    return piece->bytes;
}

void release(void) {
    while (pieces) {
        struct piece *next = pieces->next;
        free(pieces);
        pieces = next;
    }
}

void put(struct text *text, const char *format, ...) {
    for (;;) {
        va_list arguments;
        va_start(arguments, format);
        size_t room = text->capacity - text->length;
        int needed = vsnprintf(room ? text->bytes + text->length : NULL, room, format, arguments);
        va_end(arguments);
        if ((size_t)needed < room) {
            text->length += (size_t)needed;
            return;
        }
        char *old = text->bytes;
        text->capacity = 2 * text->capacity + (size_t)needed + 1;
        text->bytes = take(text->capacity, 1);
        if (text->length)
            memcpy(text->bytes, old, text->length);
    }
}

void put_string(struct text *text, const char *string) {
    put(text, "\"");
    for (; *string; string++) {
        unsigned char byte = (unsigned char)*string;
        if (byte == '"' || byte == '\\')
            put(text, "\\%c", byte);
        else if (byte < 0x20)
            put(text, "\\u%04x", byte);
        else
            put(text, "%c", byte < 0x80 ? byte : '?'); /* only shown; a message may end within a letter */
    }
    put(text, "\"");
}

void refuse(const char *field, const char *remedy, const char *format, ...) { /* RR-ERR-001 */
    va_list arguments;
    refusal.skipped = false;
    snprintf(refusal.field, sizeof refusal.field, "%s", field);
    snprintf(refusal.remedy, sizeof refusal.remedy, "%s", remedy);
    va_start(arguments, format);
    vsnprintf(refusal.message, sizeof refusal.message, format, arguments);
    va_end(arguments);
    longjmp(refused, 1);
}

void skip(const char *reason) {
    refusal.skipped = true;
    snprintf(refusal.message, sizeof refusal.message, "%s", reason);
    longjmp(refused, 1);
}
