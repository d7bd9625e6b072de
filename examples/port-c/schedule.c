/* Reading a schedule, and refusing what RR-CFG refuses, by its field (RR-ERR-001), before anything else is looked at
 * (RR-CFG-008). */
#include "port.h"

#include <stdio.h>
#include <string.h>

static void name_field(char *field, size_t size, const char *path, const char *name) {
    snprintf(field, size, "%s%s%s", path, *path ? "." : "", name);
}

/* Refuses what is no object of these fields (RR-CFG-001); the names are separated by blanks. */
static void check_fields(const struct json *object, const char *path, const char *known) {
    char field[160], name[80], remedy[160];
    snprintf(remedy, sizeof remedy, "the fields are: %s", known);
    if (!object || object->type != JSON_OBJECT)
        refuse(*path ? path : "schedule", remedy, "is %s", json_kind(object));
    for (const struct json *entry = object->first; entry; entry = entry->next) {
        snprintf(name, sizeof name, " %.70s ", entry->key);
        char all[120];
        snprintf(all, sizeof all, " %s ", known);
        if (entry->key_length != strlen(name) - 2 || !strstr(all, name) || strchr(entry->key, ' ')) {
            name_field(field, sizeof field, path, entry->key_length ? entry->key : "\"\"");
            refuse(field, remedy, "is not known");
        }
    }
}

/* Whether a field has the second of its two words; the first where it is not given and that is the default. */
static bool choose(const struct json *object, const char *path, const char *name, const char *first,
                   const char *second, bool otherwise) {
    const struct json *value = json_get(object, name);
    char field[160], remedy[160];
    if (!value)
        return otherwise;
    if (!json_is(value, first) && !json_is(value, second)) { /* RR-CFG-001 */
        name_field(field, sizeof field, path, name);
        snprintf(remedy, sizeof remedy, "give \"%s\" or \"%s\"", first, second);
        if (value->type == JSON_STRING)
            refuse(field, remedy, "\"%.60s\" is not known", value->text);
        refuse(field, remedy, "is %s", json_kind(value));
    }
    return json_is(value, second);
}

static int64_t count(const struct json *object, const char *path, const char *name) {
    const struct json *value = json_get(object, name);
    int64_t found = 1;
    char field[160];
    if (value && !json_integer(value, 1, &found)) { /* RR-CFG-001 */
        name_field(field, sizeof field, path, name);
        refuse(field, "give an integer, at least 1", "is %s, not an integer from 1 on", json_kind(value));
    }
    return found;
}

static void read_decision(const struct schedule *s, const struct json *data, int index, int64_t num_layers) {
    struct decision *decision = &s->decision[index], *before = index ? decision - 1 : NULL;
    char path[60], field[80], remedy[80];
    int64_t layer;
    snprintf(path, sizeof path, "decisions[%d]", index);
    check_fields(data, path, "layer keep");
    snprintf(field, sizeof field, "%s.layer", path);
    snprintf(remedy, sizeof remedy, "give a block from 0 to %lld", (long long)num_layers - 1);
    if (!json_integer(json_get(data, "layer"), 0, &layer) || layer >= num_layers) /* RR-CFG-003 */
        refuse(field, remedy, "is not a block of the decoder");
    decision->layer = (int)layer;
    if (before && layer <= before->layer) /* RR-CFG-002 */
        refuse(field, "layers strictly increase", "%d after %d", decision->layer, before->layer);
    snprintf(field, sizeof field, "%s.keep", path);
    read_keep(json_get(data, "keep"), field, &decision->keep);
    if (before && before->keep.is_count != decision->keep.is_count) /* RR-CFG-004 */
        refuse(field, "give every keep as a ratio or every keep as a row count", "mixes ratios and row counts");
    if (before && s->deleting && keep_grows(&before->keep, &decision->keep)) /* RR-CFG-006 */
        refuse(field, "under delete keeps never grow", "is larger than the one before");
}

static void check_combinations(const struct schedule *s) {
    if (s->deleting && !s->survivors) /* RR-CFG-006 */
        refuse("pool", "use survivors, or leave pool out", "\"all\" with action delete, whose rows are gone");
    if (s->renumber && !s->deleting) /* RR-CFG-007 */
        refuse("positions", "use preserve", "\"renumber\" with action reroute");
    if (s->previous && s->num_decisions && s->decision[0].layer == 0) /* RR-CFG-007 */
        refuse("score.source", "decide from block 1 on, or use own", "\"previous\" with a decision at block 0");
    if (s->previous && !s->survivors && s->num_decisions > 1) /* RR-CFG-007 */
        refuse("score.source", "use own, or pool survivors",
               "\"previous\" with pool all and several decisions: a deferred row did not run in the block before");
    if (!s->last_n && s->n != 1) /* RR-CFG-007 */
        refuse("score.n", "use query last_n, or leave n out", "is not 1 with query last");
}

struct schedule *read_schedule(const struct json *data, int64_t num_layers) {
    struct schedule *s = take(1, sizeof *s);
    check_fields(data, "", "action decisions score pool scope positions min_keep label");
    if (!json_get(data, "action"))
        refuse("action", "give \"reroute\" or \"delete\"", "is missing");
    s->deleting = choose(data, "", "action", "reroute", "delete", false);
    s->survivors = choose(data, "", "pool", "all", "survivors", s->deleting);
    s->per_image = choose(data, "", "scope", "request", "image", false);
    s->renumber = choose(data, "", "positions", "preserve", "renumber", false);
    s->min_keep = count(data, "", "min_keep");
    const struct json *label = json_get(data, "label"), *score = json_get(data, "score");
    if (label && label->type != JSON_STRING)
        refuse("label", "give a string", "is %s", json_kind(label));
    if (score)
        check_fields(score, "score", "source query heads n");
    s->previous = choose(score, "score", "source", "own", "previous", false);
    s->last_n = choose(score, "score", "query", "last", "last_n", false);
    s->max_heads = choose(score, "score", "heads", "mean", "max", false);
    s->n = count(score, "score", "n");
    const struct json *decisions = json_get(data, "decisions");
    if (!decisions || decisions->type != JSON_ARRAY)
        refuse("decisions", "give a list of objects with layer and keep", "is %s", json_kind(decisions));
    s->num_decisions = (int)decisions->length;
    s->decision = take(decisions->length, sizeof *s->decision);
    int index = 0;
    for (const struct json *entry = decisions->first; entry; entry = entry->next)
        read_decision(s, entry, index++, num_layers);
    check_combinations(s);
    return s;
}
