#include "sys.h"

int last_sysno;

#ifndef CK_HOSTED
/* The compiler may call these four whatever the flags. */
void *memcpy(void *dst, const void *src, size_t n)
{
    unsigned char *d = dst;
    const unsigned char *s = src;
    while (n--)
        *d++ = *s++;
    return dst;
}

void *memset(void *dst, int c, size_t n)
{
    unsigned char *d = dst;
    while (n--)
        *d++ = (unsigned char)c;
    return dst;
}

int memcmp(const void *a, const void *b, size_t n)
{
    const unsigned char *x = a, *y = b;
    for (; n; n--, x++, y++)
        if (*x != *y)
            return *x < *y ? -1 : 1;
    return 0;
}

size_t strlen(const char *s)
{
    size_t n = 0;
    while (s[n])
        n++;
    return n;
}

int strcmp(const char *a, const char *b)
{
    for (; *a && *a == *b; a++, b++)
        ;
    return (unsigned char)*a - (unsigned char)*b;
}
#endif

/* Append to a buffer that always stays NUL-terminated; what does not fit is cut. */
char *put_str(char *p, const char *end, const char *s)
{
    while (*s && p < end - 1)
        *p++ = *s++;
    *p = 0;
    return p;
}

char *put_dec(char *p, const char *end, uint64_t v)
{
    char tmp[24], *t = tmp + sizeof tmp;
    *--t = 0;
    do
        *--t = (char)('0' + v % 10);
    while (v /= 10);
    return put_str(p, end, t);
}

/* Strict: ASCII digits only, and never the value that setresuid(2) takes as "no change". */
int get_dec(const char *s, size_t n, uint32_t *out)
{
    uint64_t v = 0;
    if (n == 0 || n > 10)
        return -EINVAL;
    for (size_t i = 0; i < n; i++) {
        if (s[i] < '0' || s[i] > '9')
            return -EINVAL;
        v = v * 10 + (uint64_t)(s[i] - '0');
    }
    if (v >= UINT32_MAX)
        return -EINVAL;
    *out = (uint32_t)v;
    return 0;
}
