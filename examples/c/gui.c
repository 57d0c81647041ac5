/*
 * A chat window, in C with GTK 4.
 *
 *     cargo build --release
 *     cc -Iinclude examples/c/gui.c $(pkg-config --cflags --libs gtk4) \
 *         -Ltarget/release -lgptalk -Wl,-rpath,target/release -o gui
 *
 *     cargo run -p gptalk-service         # in another terminal: a service to talk to
 *     export GPTALK_BASE_URL=...          # as it says
 *
 *     ./gui
 *
 * Enter sends, Escape stops the reply that runs, Control-R tries again what has failed, Control-W closes.
 *
 * The main thread has the widgets: it starts a chat, cancels it and asks how it ended. A worker waits for the
 * reply, and leaves what comes of it in `news` for the main loop to show.
 */
#include <gptalk.h>
#include <gtk/gtk.h>

typedef struct {
    GtkWindow *window;
    GtkTextView *view;
    GtkTextMark *end;
    GtkWidget *entry, *problem, *error;

    gptalk_client *client;
    char *msgs;      /* what has been said, as JSON; NULL: nothing yet */
    char *question;  /* the same, and what is being asked, or was asked last */
    int reply;       /* where in the view its reply begins */
    GThread *worker; /* NULL: no chat runs */

    GMutex lock; /* of the rest, which the worker has a hand in */
    GString *news;
    gboolean is_over;
    guint idle; /* the source that will show them; 0: none */
} Chat;

static gboolean show_news(gpointer data);

/* ---- the worker ---- */

static void tell(Chat *chat, const char *text, size_t len, gboolean is_over)
{
    g_mutex_lock(&chat->lock);
    for (; len > 0; len--, text++)
        if (*text != '\0') /* which a text view does not take */
            g_string_append_c(chat->news, *text);
    chat->is_over = is_over;
    if (chat->idle == 0)
        chat->idle = g_idle_add(show_news, chat);
    g_mutex_unlock(&chat->lock);
}

static gpointer work(gpointer data)
{
    Chat *chat = data;
    const char *text;
    size_t len;

    while ((text = gptalk_next(chat->client, &len)) != NULL)
        tell(chat, text, len, FALSE);
    tell(chat, "", 0, TRUE);
    return NULL;
}

/* ---- the main loop ---- */

static void append(Chat *chat, const char *text)
{
    GtkTextBuffer *buffer = gtk_text_view_get_buffer(chat->view);
    GtkTextIter end;

    gtk_text_buffer_get_end_iter(buffer, &end);
    gtk_text_buffer_insert(buffer, &end, text, -1);
    gtk_text_view_scroll_mark_onscreen(chat->view, chat->end);
}

static void enable(Chat *chat, const char *name, gboolean enabled)
{
    GAction *action = g_action_map_lookup_action(G_ACTION_MAP(chat->window), name);
    g_simple_action_set_enabled(G_SIMPLE_ACTION(action), enabled);
}

/* Shows what can be done while a chat runs, and when it has ended: well (`error` is NULL) or not. */
static void update(Chat *chat, const char *error)
{
    gboolean runs = chat->worker != NULL;

    enable(chat, "send", !runs);
    enable(chat, "stop", runs);
    gtk_label_set_text(GTK_LABEL(chat->error), error != NULL ? error : "");
    gtk_widget_set_visible(chat->problem, error != NULL);
    enable(chat, "retry", error != NULL && gptalk_get_int(chat->client, "retryable") == 1);
}

/* Asks the question. After gptalk_start() the chat can be cancelled: no Stop comes too early. */
static void start_chat(Chat *chat)
{
    chat->reply = gtk_text_buffer_get_char_count(gtk_text_view_get_buffer(chat->view));
    if (gptalk_start(chat->client, chat->question) == GPTALK_OK)
        chat->worker = g_thread_new("chat", work, chat);
    update(chat, chat->worker != NULL ? NULL : gptalk_get(chat->client, "error"));
}

static void end_chat(Chat *chat)
{
    gptalk_status status;
    const char *answer;

    g_thread_join(chat->worker);
    chat->worker = NULL;
    status = gptalk_finish(chat->client);

    if (g_strcmp0(gptalk_get(chat->client, "error_code"), "rewritten") == 0) {
        GtkTextBuffer *buffer = gtk_text_view_get_buffer(chat->view);
        GtkTextIter reply, end;
        gtk_text_buffer_get_bounds(buffer, &reply, &end);
        gtk_text_iter_set_offset(&reply, chat->reply);
        gtk_text_buffer_delete(buffer, &reply, &end);
        append(chat, gptalk_get(chat->client, "text"));
    }
    append(chat, "\n\n");

    /* What has come counts as said, be it in part. Where nothing has, the question may be asked again. */
    answer = gptalk_get(chat->client, "message");
    if (answer != NULL) {
        gptalk_free(chat->msgs);
        chat->msgs = gptalk_push(chat->question, NULL, answer);
    }
    update(chat, status == GPTALK_CANCELLED ? NULL : gptalk_get(chat->client, "error"));
}

static gboolean show_news(gpointer data)
{
    Chat *chat = data;
    GString *news;
    gboolean is_over;

    g_mutex_lock(&chat->lock);
    news = chat->news;
    is_over = chat->is_over;
    chat->news = g_string_new(NULL);
    chat->is_over = FALSE;
    chat->idle = 0;
    g_mutex_unlock(&chat->lock);

    append(chat, news->str);
    g_string_free(news, TRUE);
    if (is_over)
        end_chat(chat);
    return G_SOURCE_REMOVE;
}

static void on_send(GSimpleAction *action, GVariant *none, gpointer data)
{
    Chat *chat = data;
    const char *text = gtk_editable_get_text(GTK_EDITABLE(chat->entry));
    (void)action, (void)none;

    if (text[0] == '\0')
        return;
    gptalk_free(chat->question);
    chat->question = gptalk_push(chat->msgs, "user", text);
    append(chat, "> ");
    append(chat, text);
    append(chat, "\n");
    gtk_editable_set_text(GTK_EDITABLE(chat->entry), "");
    start_chat(chat);
}

static void on_stop(GSimpleAction *action, GVariant *none, gpointer data)
{
    Chat *chat = data;
    (void)action, (void)none;
    gptalk_cancel(chat->client); /* the worker's gptalk_next() returns NULL */
}

static void on_retry(GSimpleAction *action, GVariant *none, gpointer data)
{
    (void)action, (void)none;
    start_chat(data);
}

/* The worker ends before the window does, and nothing comes for it later. */
static gboolean on_close(GtkWindow *window, gpointer data)
{
    Chat *chat = data;
    (void)window;

    if (chat->worker != NULL) {
        gptalk_cancel(chat->client);
        g_thread_join(chat->worker);
        chat->worker = NULL;
    }
    if (chat->idle != 0)
        g_source_remove(chat->idle);
    chat->idle = 0;
    return GDK_EVENT_PROPAGATE;
}

/* ---- the window ---- */

/* A row of a box: what takes its width, and then buttons. */
static GtkWidget *add_row(GtkWidget *box, GtkWidget *first)
{
    GtkWidget *row = gtk_box_new(GTK_ORIENTATION_HORIZONTAL, 6);
    gtk_widget_set_hexpand(first, TRUE);
    gtk_box_append(GTK_BOX(row), first);
    gtk_box_append(GTK_BOX(box), row);
    return row;
}

static GtkWidget *add_button(GtkWidget *row, const char *label, const char *action)
{
    GtkWidget *button = gtk_button_new_with_mnemonic(label);
    gtk_actionable_set_action_name(GTK_ACTIONABLE(button), action);
    gtk_box_append(GTK_BOX(row), button);
    return button;
}

static void on_activate(GtkApplication *app, gpointer data)
{
    static const GActionEntry actions[] = {
        {.name = "send", .activate = on_send},
        {.name = "stop", .activate = on_stop},
        {.name = "retry", .activate = on_retry},
    };
    Chat *chat = data;
    GtkWidget *box = gtk_box_new(GTK_ORIENTATION_VERTICAL, 6), *row;
    GtkWidget *scrolled = gtk_scrolled_window_new(), *view = gtk_text_view_new();
    GtkTextBuffer *buffer = gtk_text_view_get_buffer(GTK_TEXT_VIEW(view));
    GtkTextIter end;

    chat->window = GTK_WINDOW(gtk_application_window_new(app));
    gtk_window_set_title(chat->window, "gptalk");
    gtk_window_set_default_size(chat->window, 560, 480);
    gtk_window_set_child(chat->window, box);
    g_action_map_add_action_entries(G_ACTION_MAP(chat->window), actions, G_N_ELEMENTS(actions), chat);
    g_signal_connect(chat->window, "close-request", G_CALLBACK(on_close), chat);

    chat->view = GTK_TEXT_VIEW(view);
    gtk_text_view_set_editable(chat->view, FALSE);
    gtk_text_view_set_wrap_mode(chat->view, GTK_WRAP_WORD_CHAR);
    gtk_text_buffer_get_end_iter(buffer, &end);
    chat->end = gtk_text_buffer_create_mark(buffer, NULL, &end, FALSE);
    gtk_scrolled_window_set_child(GTK_SCROLLED_WINDOW(scrolled), view);
    gtk_widget_set_vexpand(scrolled, TRUE);
    gtk_box_append(GTK_BOX(box), scrolled);

    chat->error = gtk_label_new(NULL);
    gtk_label_set_wrap(GTK_LABEL(chat->error), TRUE);
    chat->problem = add_row(box, chat->error);
    add_button(chat->problem, "_Retry", "win.retry");

    chat->entry = gtk_entry_new();
    gtk_entry_set_activates_default(GTK_ENTRY(chat->entry), TRUE);
    row = add_row(box, chat->entry);
    gtk_window_set_default_widget(chat->window, add_button(row, "_Send", "win.send"));
    add_button(row, "S_top", "win.stop");

    update(chat, NULL);
    gtk_widget_grab_focus(chat->entry);
    gtk_window_present(chat->window);
}

int main(int argc, char **argv)
{
    static const char *const keys[][3] = {
        {"win.stop", "Escape"}, {"win.retry", "<Control>r"}, {"window.close", "<Control>w"}};
    GtkApplication *app = gtk_application_new("com.example.gptalk", G_APPLICATION_NON_UNIQUE);
    Chat chat = {.client = gptalk_client_new(), .news = g_string_new(NULL)};
    int result;

    for (size_t i = 0; i < G_N_ELEMENTS(keys); i++)
        gtk_application_set_accels_for_action(app, keys[i][0], &keys[i][1]);
    g_mutex_init(&chat.lock);
    g_signal_connect(app, "activate", G_CALLBACK(on_activate), &chat);
    result = g_application_run(G_APPLICATION(app), argc, argv);

    g_object_unref(app);
    g_mutex_clear(&chat.lock);
    g_string_free(chat.news, TRUE);
    gptalk_free(chat.question);
    gptalk_free(chat.msgs);
    gptalk_client_free(chat.client);
    return result;
}
