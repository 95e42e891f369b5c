package worker

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/wheelrefinery/refinery/api"
)

const (
	installTime = 15 * time.Minute // for packages to be fetched and installed
	askTime     = time.Minute      // for a question about them
	listsAge    = 24 * time.Hour   // after which apt's lists are fetched again
)

// manager installs packages of a distribution.
type manager struct {
	program string
	// missing says which packages are to be installed still; it changes nothing and needs no rights.
	missing func(ctx context.Context, w *Worker, names []string) []string
	install func(ctx context.Context, w *Worker, names []string, log io.Writer) error
}

var managers = map[api.RecipeKind]manager{
	api.RecipeKindApt: {"apt-get", aptMissing, aptInstall},
	api.RecipeKindDnf: {"dnf", dnfMissing, dnfInstall},
}

// packages sees to it that the packages of a recipe are there. What is for another distribution is passed over.
func (w *Worker) packages(ctx context.Context, job *api.Job, r api.Recipe, log *logStream) error {
	m := managers[r.Kind]
	failed := func(format string, args ...any) error {
		return &fault{Class: or(job.FailedBefore, classMissingLibrary), Reason: oneLine(fmt.Sprintf(format, args...))}
	}
	if _, err := exec.LookPath(m.program); err != nil {
		log.say(ctx, "recipe: %s packages %s: this machine has no %s", r.Kind, strings.Join(r.Items, " "), m.program)
		return nil
	}
	w.installing.Lock()
	defer w.installing.Unlock()
	names := m.missing(ctx, w, r.Items)
	switch {
	case context.Cause(ctx) != nil:
		return context.Cause(ctx)
	case len(names) == 0:
		log.say(ctx, "recipe: %s packages %s are there", r.Kind, strings.Join(r.Items, " "))
		return nil
	case !w.Packages:
		return failed("it needs the %s packages %s: install them on the worker's machine, or start the worker as root with --allow-system-packages",
			r.Kind, strings.Join(names, " "))
	}
	log.say(ctx, "recipe: installing the %s packages %s", r.Kind, strings.Join(names, " "))
	began := time.Now()
	if err := m.install(ctx, w, names, logWriter{ctx, log}); err != nil {
		if context.Cause(ctx) != nil {
			return context.Cause(ctx)
		}
		f := failed("the %s packages %s cannot be installed: %v", r.Kind, strings.Join(names, " "), err).(*fault)
		f.Evidence = evidence(log.tail(evidenceLines))
		return f
	}
	w.Logger.Info("packages were installed", "kind", r.Kind, "packages", names, "build", job.Build.Name+" "+job.Build.Version,
		"seconds", time.Since(began).Round(100*time.Millisecond).Seconds())
	return nil
}

// logWriter writes what a program of ours says into a build's log.
type logWriter struct {
	ctx context.Context
	log *logStream
}

func (l logWriter) Write(p []byte) (int, error) {
	l.log.write(l.ctx, p)
	return len(p), nil
}

// system runs a program of the distribution with arguments, never through a shell, in an environment that is ours.
func (w *Worker) system(ctx context.Context, limit time.Duration, out io.Writer, name string, args ...string) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.Env = []string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/", "LC_ALL=C.UTF-8",
		"DEBIAN_FRONTEND=noninteractive", "APT_LISTCHANGES_FRONTEND=none", "NEEDRESTART_MODE=l",
	}
	for name, value := range w.network {
		cmd.Env = append(cmd.Env, name+"="+value)
	}
	// Ctrl-C is for the worker. What must end gets the time to end in good order: half an installation has to be mended.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGTERM) }
	cmd.WaitDelay = 3 * time.Second
	return cmd.Run()
}

// answer is what a program says to a question.
func (w *Worker) answer(ctx context.Context, name string, args ...string) (string, error) {
	var out strings.Builder
	err := w.system(ctx, askTime, &out, name, args...)
	return out.String(), err
}

func aptMissing(ctx context.Context, w *Worker, items []string) (missing []string) {
	for _, item := range items {
		status, err := w.answer(ctx, "dpkg-query", "--show", "--showformat", "${db:Status-Status}", "--", item) // which knows no versions
		if err != nil || status != "installed" {
			missing = append(missing, item)
		}
	}
	if len(missing) == 0 || slices.ContainsFunc(missing, func(item string) bool { return !w.aptKnows(ctx, item) }) {
		return missing
	}
	// What it is not by name it may be by virtue of another package, which a dry run understands.
	plan, err := w.answer(ctx, "apt-get", append([]string{"--simulate", "--quiet", "--no-install-recommends", "install", "--"}, missing...)...)
	if err == nil && !strings.Contains("\n"+plan, "\nInst ") {
		return nil
	}
	return missing
}

// aptKnows says that apt has a package of exactly this name: one that it does not know, it would take for a pattern.
func (w *Worker) aptKnows(ctx context.Context, item string) bool {
	name, _, _ := strings.Cut(item, "=")
	name, _, _ = strings.Cut(name, ":")
	names, err := w.answer(ctx, "apt-cache", "--option", "APT::Cache::AllNames=true", "pkgnames", "--", name)
	return err == nil && slices.Contains(strings.Split(names, "\n"), name)
}

func aptInstall(ctx context.Context, w *Worker, items []string, log io.Writer) error {
	unknown := func(item string) bool { return !w.aptKnows(ctx, item) }
	lists, err := os.Stat("/var/lib/apt/lists/partial") // touched by each update
	if err != nil || time.Since(lists.ModTime()) > listsAge || slices.ContainsFunc(items, unknown) {
		if err := w.system(ctx, installTime, log, "apt-get", "--quiet", "--yes", "update"); err != nil {
			return fmt.Errorf("apt-get update: %w", err)
		}
	}
	for _, item := range items {
		if unknown(item) {
			return fmt.Errorf("apt knows no package %s", item)
		}
	}
	// Mends what an installation that was cut off has left.
	if err := w.system(ctx, installTime, log, "dpkg", "--configure", "-a"); err != nil {
		return fmt.Errorf("dpkg --configure -a: %w", err)
	}
	args := []string{"--quiet", "--yes", "--no-install-recommends", "--no-remove", "--option", "DPkg::Lock::Timeout=300", "install", "--"}
	if err := w.system(ctx, installTime, log, "apt-get", append(args, items...)...); err != nil {
		return fmt.Errorf("apt-get install: %w", err)
	}
	return nil
}

func dnfMissing(ctx context.Context, w *Worker, items []string) (missing []string) {
	for _, item := range items {
		if _, err := w.answer(ctx, "rpm", "--query", "--whatprovides", "--", item); err != nil {
			missing = append(missing, item)
		}
	}
	return missing
}

func dnfInstall(ctx context.Context, w *Worker, items []string, log io.Writer) error {
	args := []string{"--assumeyes", "--setopt=install_weak_deps=False", "install", "--"}
	if err := w.system(ctx, installTime, log, "dnf", append(args, items...)...); err != nil {
		return fmt.Errorf("dnf install: %w", err)
	}
	return nil
}
