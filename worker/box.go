package worker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Users of boxes where the worker is root and no user is named: no account has these ids, and no two boxes share one.
const (
	plannerUID = 64000
	firstUID   = 64001
	lastUID    = 64999
)

// identity says as whom things run. uid -1: as the worker itself.
type identity struct {
	uid, gid int
	lock     *os.File // held by whoever may still have processes of that user; nil: it is shared
}

func (w *Worker) plannerIdentity() identity {
	if w.pool {
		return identity{uid: plannerUID, gid: plannerUID}
	}
	return w.builder
}

func (w *Worker) boxIdentity() (identity, error) {
	if !w.pool {
		return w.builder, nil
	}
	// An abstract socket is a lock that ends with its last holder: the supervisors of the box hold it too, and outlive a killed worker.
	// The kernel counts a user's processes over all containers, which do not see each other's locks: where each begins to look is chance.
	const count = lastUID - firstUID + 1
	begin := rand.IntN(count)
	for i := range count {
		uid := firstUID + (begin+i)%count
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: fmt.Sprintf("@wheelrefinery/uid/%d", uid), Net: "unix"})
		if errors.Is(err, unix.EADDRINUSE) {
			continue
		}
		if err != nil {
			return identity{}, fmt.Errorf("lock user %d: %w", uid, err)
		}
		lock, err := l.File()
		return identity{uid, uid, lock}, errors.Join(err, l.Close())
	}
	return identity{}, fmt.Errorf("all users from %d to %d are taken", firstUID, lastUID)
}

// box is where code of packages runs.
type box struct {
	worker *Worker
	who    identity
	folder string // home, tmp and whatever its commands make
}

// newBox makes a box under folder.
func (w *Worker) newBox(folder string) (*box, error) {
	who, err := w.boxIdentity()
	if err != nil {
		return nil, err
	}
	b := &box{worker: w, who: who}
	if b.folder, err = os.MkdirTemp(folder, "box-"); err == nil {
		for _, name := range []string{"", "home", "tmp", "out"} {
			path := filepath.Join(b.folder, name)
			err = errors.Join(err, ensureDir(path, 0o700, who))
		}
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("make a box: %w", err), b.close())
	}
	return b, nil
}

func ensureDir(path string, mode os.FileMode, who identity) error {
	if err := os.MkdirAll(path, mode); err != nil {
		return err
	}
	if err := os.Chmod(path, mode); err != nil {
		return err
	}
	if who.uid < 0 {
		return nil
	}
	return os.Lchown(path, who.uid, who.gid)
}

func (b *box) close() error {
	var err error
	if b.folder != "" {
		err = removeAll(b.folder)
	}
	if b.who.lock != nil {
		err = errors.Join(err, b.who.lock.Close())
	}
	return err
}

// removeAll also removes folders that a build made unreadable.
func removeAll(folder string) error {
	err := os.RemoveAll(folder)
	if err == nil {
		return nil
	}
	_ = filepath.WalkDir(folder, func(path string, e os.DirEntry, _ error) error {
		if e != nil && e.IsDir() {
			_ = os.Chmod(path, 0o700)
		}
		return nil
	})
	return os.RemoveAll(folder)
}

// command is what a box, or the planner, runs.
type command struct {
	argv    []string
	env     map[string]string // beside the clean environment; it wins
	dir     string            // empty: the folder
	timeout time.Duration
	stdin   *os.File // nil: empty
	stdout  *os.File
	stderr  *os.File
}

// environment is what every command sees: nothing of the worker's but what reaching the network needs.
func (b *box) environment(more map[string]string) []string {
	env := map[string]string{
		"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": b.folder + "/home", "TMPDIR": b.folder + "/tmp",
		"USER": "build", "LOGNAME": "build", "LANG": "C.UTF-8", "LC_ALL": "C.UTF-8", "PYTHONUNBUFFERED": "1",
		"SOURCE_DATE_EPOCH": sourceDateEpoch, "PYTHONDONTWRITEBYTECODE": "1",
	}
	for name, value := range b.worker.network {
		env[name] = value
	}
	for name, value := range more {
		env[name] = value
	}
	list := make([]string, 0, len(env))
	for name, value := range env {
		list = append(list, name+"="+strings.ReplaceAll(value, "{box}", b.folder))
	}
	return list
}

// sourceDateEpoch is the first moment that a zip file can hold (reproducible-builds.org).
const sourceDateEpoch = "315532800"

// order is what the supervisor of c is told.
func (b *box) order(c command) order {
	o := order{
		Env: b.environment(c.env), Dir: b.folder, UID: b.who.uid, GID: b.who.gid, Exclusive: b.who.lock != nil, Folder: b.folder,
		Timeout: c.timeout, Memory: b.worker.Memory, Disk: b.worker.Disk, Processes: b.worker.Processes,
	}
	if c.dir != "" {
		o.Dir = c.dir
	}
	for _, arg := range c.argv {
		o.Argv = append(o.Argv, strings.ReplaceAll(arg, "{box}", b.folder))
	}
	return o
}

// run starts the command and returns when nothing of it is left. It ends early with ctx.
func (b *box) run(ctx context.Context, c command) (report, error) {
	orderR, orderW, err := os.Pipe()
	if err != nil {
		return report{}, fmt.Errorf("start a supervisor: %w", err)
	}
	defer orderW.Close()
	reportR, reportW, err := os.Pipe()
	if err != nil {
		return report{}, errors.Join(fmt.Errorf("start a supervisor: %w", err), orderR.Close())
	}
	defer reportR.Close()

	cmd := &exec.Cmd{
		Path: b.worker.self, Args: []string{supervisorName}, Env: []string{"GOMAXPROCS=2"}, Dir: "/",
		Stdout: c.stdout, Stderr: c.stderr, ExtraFiles: []*os.File{orderR, reportW},
		SysProcAttr: &syscall.SysProcAttr{Setpgid: true}, // Ctrl-C is for the worker
	}
	if c.stdin != nil {
		cmd.Stdin = c.stdin
	}
	if b.who.lock != nil {
		cmd.ExtraFiles = append(cmd.ExtraFiles, b.who.lock)
	}
	err = cmd.Start()
	err = errors.Join(err, orderR.Close(), reportW.Close())
	if err != nil {
		return report{}, fmt.Errorf("start a supervisor: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { orderW.Close() })
	defer stop()
	var r report
	if err = json.NewEncoder(orderW).Encode(b.order(c)); err == nil {
		err = json.NewDecoder(io.LimitReader(reportR, 1<<20)).Decode(&r)
	}
	waited := cmd.Wait()
	switch {
	case ctx.Err() != nil:
		if err != nil || waited != nil {
			b.sweep()
		}
		return r, context.Cause(ctx)
	case err != nil || waited != nil:
		b.sweep()
		return r, fmt.Errorf("the supervisor ended without a report: %w", errors.Join(err, waited))
	case r.Error != "":
		return r, errors.New(r.Error)
	}
	return r, nil
}

// sweep kills what is left of a box whose supervisor was itself killed: what names its folder in its environment, and what runs as its user
// where it has one of its own. Of those, the root of a container may not read the environment.
func (b *box) sweep() {
	for _, p := range slices.Backward(processes()) {
		env, _ := os.ReadFile(fmt.Sprintf("/proc/%d/environ", p.pid))
		if strings.Contains(string(env), "HOME="+b.folder) || b.who.lock != nil && p.user() == b.who.uid {
			_ = unix.Kill(p.pid, unix.SIGKILL)
		}
	}
}

// open opens a file that a box's command left, for the worker to read. What is no plain file, or not the box's own, is refused: the
// worker may read more than the box may.
func (b *box) open(name string, limit int64) (*os.File, int64, error) {
	root, err := os.OpenRoot(b.folder)
	if err != nil {
		return nil, 0, err
	}
	defer root.Close()
	f, err := root.OpenFile(name, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, 0, err
	}
	info, err := f.Stat()
	if err != nil {
		return nil, 0, errors.Join(err, f.Close())
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok || !info.Mode().IsRegular() || (b.who.uid >= 0 && int(st.Uid) != b.who.uid) {
		return nil, 0, errors.Join(fmt.Errorf("%s is not a plain file of the build's own", name), f.Close())
	}
	if info.Size() > limit {
		return nil, 0, errors.Join(fmt.Errorf("%s is over %d bytes", name, limit), f.Close())
	}
	return f, info.Size(), nil
}
