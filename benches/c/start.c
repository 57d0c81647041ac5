/* A program that does nothing; or makes a first client, and does nothing with it. Prints the processor's time
 * until then, loading included, in microseconds; with an argument, the version of libcurl. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <stdio.h>
#include <time.h>
#if defined WITH_GPTALK
#include <gptalk.h>
#elif defined WITH_CURL
#include <curl/curl.h>
#endif

int main(int argc, char **argv)
{
    struct timespec cpu;
#if defined WITH_GPTALK
    gptalk_client_free(gptalk_client_new());
#elif defined WITH_CURL
    curl_global_init(CURL_GLOBAL_DEFAULT);
    curl_easy_cleanup(curl_easy_init());
    if (argc > 1)
        return puts(curl_version()) < 0;
#endif
    (void)argc;
    (void)argv;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &cpu);
    printf("cpu=%ld\n", cpu.tv_sec * 1000000L + cpu.tv_nsec / 1000);
    return 0;
}
