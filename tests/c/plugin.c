/* A host that loads the library at run time, on a thread, and lets it go: plugin LIBRARY URL */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <gptalk.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#define HI "[{\"role\":\"user\",\"content\":\"Hi\"}]"

static char **args;

static void *find(void *library, const char *name)
{
    void *symbol = dlsym(library, name);
    if (symbol == NULL)
        fprintf(stderr, "%s\n", dlerror());
    return symbol;
}

/* The thread ends after the library was closed: what the library keeps for it is still to be released. */
static void *host(void *failure)
{
    void *library = dlopen(args[1], RTLD_NOW | RTLD_LOCAL);
    gptalk_status (*set)(gptalk_client *, const char *, const char *);
    gptalk_status (*chat)(const char *, gptalk_callback, void *);
    const char *(*get)(const gptalk_client *, const char *);

    if (library == NULL) {
        fprintf(stderr, "%s\n", dlerror());
        return failure;
    }
    /* ISO C has no conversion from object to function pointers; POSIX has this one. */
    *(void **)&set = find(library, "gptalk_set");
    *(void **)&chat = find(library, "gptalk_chat");
    *(void **)&get = find(library, "gptalk_get");
    if (set == NULL || chat == NULL || get == NULL)
        return failure;
    if (set(NULL, "base_url", args[2]) != GPTALK_OK || chat(HI, NULL, NULL) != GPTALK_OK
        || strcmp(get(NULL, "text"), "You said: Hi") != 0) {
        fprintf(stderr, "%s\n", get(NULL, "error"));
        return failure;
    }
    if (dlclose(library) != 0) {
        fprintf(stderr, "%s\n", dlerror());
        return failure;
    }
    return NULL;
}

int main(int argc, char **argv)
{
    int i, failure = 0;
    args = argv;
    for (i = 0; argc == 3 && i < 4; i++) {
        pthread_t thread;
        void *failed = host(&failure);
        if (failed != NULL || pthread_create(&thread, NULL, host, &failure) != 0
            || pthread_join(thread, &failed) != 0 || failed != NULL)
            return 1;
    }
    return i == 4 ? 0 : 2;
}
