/* Keeps: ratios as two integers of any length that a schedule can spell, so that no budget depends on a float. */
#include "port.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#define BASE 1000000000u

static void set(struct big *a, uint32_t value) {
    memset(a, 0, sizeof *a);
    a->limb[0] = value;
    a->length = value ? 1 : 0;
}

/* a = a * factor + more */
static void grow(struct big *a, uint32_t factor, uint32_t more) {
    uint64_t carry = more;
    for (int i = 0; i < a->length; i++) {
        carry += (uint64_t)a->limb[i] * factor;
        a->limb[i] = (uint32_t)(carry % BASE);
        carry /= BASE;
    }
    for (; carry && a->length < LIMBS; carry /= BASE)
        a->limb[a->length++] = (uint32_t)(carry % BASE);
}

static void raise(struct big *a, uint32_t factor, int times) {
    while (times-- > 0)
        grow(a, factor, 0);
}

/* Divides by 2 or 5 where that leaves nothing over. */
static bool divided(struct big *a, uint32_t divisor) {
    struct big quotient = *a;
    uint64_t rest = 0;
    for (int i = a->length - 1; i >= 0; i--) {
        rest = rest * BASE + a->limb[i];
        quotient.limb[i] = (uint32_t)(rest / divisor);
        rest %= divisor;
    }
    if (rest)
        return false;
    while (quotient.length && !quotient.limb[quotient.length - 1])
        quotient.length--;
    *a = quotient;
    return true;
}

static int compare(const struct big *a, const struct big *b) {
    if (a->length != b->length)
        return a->length < b->length ? -1 : 1;
    for (int i = a->length - 1; i >= 0; i--)
        if (a->limb[i] != b->limb[i])
            return a->limb[i] < b->limb[i] ? -1 : 1;
    return 0;
}

static struct big product(const struct big *a, const struct big *b) {
    struct big result;
    set(&result, 0);
    result.length = a->length + b->length;
    for (int i = 0; i < a->length; i++) {
        uint64_t carry = 0;
        for (int j = 0; j < b->length || carry; j++) {
            carry += result.limb[i + j] + (j < b->length ? (uint64_t)a->limb[i] * b->limb[j] : 0);
            result.limb[i + j] = (uint32_t)(carry % BASE);
            carry /= BASE;
        }
    }
    while (result.length && !result.limb[result.length - 1])
        result.length--;
    return result;
}

/* a -= b, which is not larger */
static void subtract(struct big *a, const struct big *b) {
    int64_t borrow = 0;
    for (int i = 0; i < a->length; i++) {
        int64_t rest = (int64_t)a->limb[i] - (i < b->length ? b->limb[i] : 0) - borrow;
        borrow = rest < 0;
        a->limb[i] = (uint32_t)(rest + borrow * BASE);
    }
    while (a->length && !a->limb[a->length - 1])
        a->length--;
}

/* The greatest common divisor of two numbers that are not zero. */
static struct big common_divisor(struct big a, struct big b) {
    int twos = 0;
    for (struct big half = b; divided(&half, 2) && divided(&a, 2); b = half)
        twos++;
    while (a.length) {
        while (divided(&a, 2)) {
        }
        while (divided(&b, 2)) {
        }
        if (compare(&a, &b) < 0) {
            struct big larger = b;
            b = a;
            a = larger;
        }
        subtract(&a, &b);
    }
    raise(&b, 2, twos);
    return b;
}

/* Appends a run of digits to a, and says how many there were. */
static int read_digits(const char **at, struct big *a) {
    int count = 0;
    for (; **at >= '0' && **at <= '9'; (*at)++)
        if (++count <= 41)
            grow(a, 10, (uint32_t)(**at - '0'));
    return count;
}

/* The two forms of RR-CFG-004; false where the text has neither. */
static bool parse_ratio(const char *at, size_t length, struct big *over, struct big *under) {
    const char *end = at + length;
    struct big number;
    int before, after = 0, exponent = 0;
    set(over, 0);
    set(under, 0);
    set(&number, 0);
    before = read_digits(&at, over);
    if (before && *at == '/') {
        at++;
        after = read_digits(&at, under);
        return before <= 41 && after >= 1 && after <= 41 && at == end;
    }
    if (*at == '.') {
        at++;
        after = read_digits(&at, over);
    }
    if (before + after == 0 || before > 40 || after > 40)
        return false;
    if (*at == 'e' || *at == 'E') {
        bool negative = *++at == '-';
        at += *at == '-' || *at == '+';
        int digits = read_digits(&at, &number);
        if (digits < 1 || digits > 3)
            return false;
        exponent = negative ? -(int)number.limb[0] : (int)number.limb[0];
    }
    if (at != end)
        return false;
    exponent -= after;
    set(under, 1);
    if (exponent >= 0) {
        raise(over, 10, exponent);
        return true;
    }
    int twos = -exponent, fives = -exponent; /* of the denominator, in lowest terms: it has no other factor */
    while (over->length && twos && divided(over, 2))
        twos--;
    while (over->length && fives && divided(over, 5))
        fives--;
    raise(under, 2, twos);
    raise(under, 5, fives);
    return true;
}

void read_keep(const struct json *value, const char *field, struct keep *keep) {
    struct big largest, divisor;
    char remedy[80];
    if (value && value->type == JSON_NUMBER) {
        if (value->number != floor(value->number)) { /* RR-CFG-005 */
            snprintf(remedy, sizeof remedy, "write a ratio as a string, such as \"%.15g\"", value->number);
            refuse(field, remedy, "%.17g is a binary float, which holds no decimal ratio exactly", value->number);
        }
        keep->is_count = true;
        if (!json_integer(value, 1, &keep->count)) /* RR-CFG-004 */
            refuse(field, "a row count is an integer, at least 1", "%g is no row count", value->number);
        return;
    }
    if (!value || value->type != JSON_STRING)
        refuse(field, "give a ratio as a string or a row count as an integer", "is %s", json_kind(value));
    if (!parse_ratio(value->text, value->length, &keep->over, &keep->under) || !keep->under.length)
        refuse(field, "give a decimal (\"0.25\") or a fraction (\"1/4\")", "\"%.60s\" is no ratio", value->text);
    if (!keep->over.length || compare(&keep->over, &keep->under) > 0)
        refuse(field, "a ratio lies in (0, 1]; \"1\" keeps all", "\"%.60s\" is outside (0, 1]", value->text);
    divisor = common_divisor(keep->over, keep->under);
    set(&largest, 1);
    raise(&largest, 10, 40);
    largest = product(&largest, &divisor); /* that of the ratio in lowest terms, times what was reduced */
    if (compare(&keep->under, &largest) > 0)
        refuse(field, "give at most 40 digits", "\"%.60s\" has a denominator beyond 10^40", value->text);
}

bool keep_grows(const struct keep *from, const struct keep *to) {
    if (from->is_count)
        return to->count > from->count;
    struct big left = product(&to->over, &from->under), right = product(&from->over, &to->under);
    return compare(&left, &right) > 0;
}

/* min(pool, max(min_keep, floor(r n))) (RR-BUD-001); floor is the largest q of 0 ... n with q under <= n over. */
int budget(const struct keep *keep, int n, int64_t min_keep, int pool) {
    int64_t rows = keep->count;
    if (!keep->is_count) {
        struct big scaled = keep->over;
        grow(&scaled, (uint32_t)n, 0);
        int low = 0, high = n;
        while (low < high) {
            int middle = low + (high - low + 1) / 2;
            struct big tried = keep->under;
            grow(&tried, (uint32_t)middle, 0);
            if (compare(&tried, &scaled) <= 0)
                low = middle;
            else
                high = middle - 1;
        }
        rows = low;
    }
    rows = rows < min_keep ? min_keep : rows;
    return rows < pool ? (int)rows : pool;
}
