/* The first process of every pod: keeps the pod's namespaces alive, reaps whatever is left to it, ends when told.
 * Run as process 1 of a pod that shares its process namespace it collects the pod's orphans. */
#include <signal.h>
#include <stddef.h>
#include <sys/wait.h>
#include <unistd.h>

static void reap(int signal_number)
{
	(void)signal_number;
	while (waitpid(-1, NULL, WNOHANG) > 0)
		;
}

static void end(int signal_number)
{
	(void)signal_number;
	_exit(0);
}

int main(void)
{
	struct sigaction on_child = { .sa_handler = reap, .sa_flags = SA_NOCLDSTOP | SA_RESTART };
	struct sigaction on_end = { .sa_handler = end };

	if (sigaction(SIGCHLD, &on_child, NULL) || sigaction(SIGTERM, &on_end, NULL) || sigaction(SIGINT, &on_end, NULL))
		return 1;
	for (;;)
		pause();
}
