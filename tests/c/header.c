/* The header alone: every number and every signature of the contract, frozen. */
#include "gptalk.h"

#if defined(__cplusplus)
#define FROZEN(name, value) static_assert(name == value, #name);
#elif __STDC_VERSION__ >= 201112L
#define FROZEN(name, value) _Static_assert(name == value, #name);
#else
#define FROZEN(name, value) extern const char frozen_##name[name == value ? 1 : -1];
#endif

FROZEN(GPTALK_OK, 0)
FROZEN(GPTALK_CANCELLED, 1)
FROZEN(GPTALK_MISUSE, 2)
FROZEN(GPTALK_BUSY, 3)
FROZEN(GPTALK_AUTH, 4)
FROZEN(GPTALK_RATE_LIMIT, 5)
FROZEN(GPTALK_REQUEST, 6)
FROZEN(GPTALK_SERVER, 7)
FROZEN(GPTALK_NETWORK, 8)
FROZEN(GPTALK_TLS, 9)
FROZEN(GPTALK_TIMEOUT, 10)
FROZEN(GPTALK_PROTOCOL, 11)
FROZEN(GPTALK_TRUNCATED, 12)
FROZEN(GPTALK_LIMIT, 13)
FROZEN(GPTALK_INTERNAL, 14)

struct signatures {
    int (*callback)(const char *, size_t, void *);
    gptalk_status (*chat)(const char *, gptalk_callback, void *);
    gptalk_client *(*client_new)(void);
    gptalk_client *(*client_clone)(const gptalk_client *);
    void (*client_free)(gptalk_client *);
    gptalk_status (*client_chat)(gptalk_client *, const char *, gptalk_callback, void *);
    gptalk_status (*set)(gptalk_client *, const char *, const char *);
    gptalk_status (*on)(gptalk_client *, const char *, gptalk_callback, void *);
    gptalk_status (*start)(gptalk_client *, const char *);
    const char *(*next)(gptalk_client *, size_t *);
    gptalk_status (*finish)(gptalk_client *);
    int (*cancel)(gptalk_client *);
    const char *(*get)(const gptalk_client *, const char *);
    int64_t (*get_int)(const gptalk_client *, const char *);
    char *(*push)(const char *, const char *, const char *);
    void (*free_text)(char *);
    const char *(*status_name)(int);
    const char *(*version)(void);
    uint32_t (*version_number)(void);
};

extern const struct signatures signatures;
const struct signatures signatures = {
    (gptalk_callback)0,  gptalk_chat,   gptalk_client_new, gptalk_client_clone, gptalk_client_free,
    gptalk_client_chat,  gptalk_set,    gptalk_on,         gptalk_start,        gptalk_next,
    gptalk_finish,       gptalk_cancel, gptalk_get,        gptalk_get_int,      gptalk_push,
    gptalk_free,         gptalk_status_name, gptalk_version, gptalk_version_number,
};
