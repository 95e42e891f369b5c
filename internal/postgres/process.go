package postgres

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const maxLog = 16 << 20 // of the server's log, beyond which a start puts it aside

type postmaster struct{ pid, port int }

// postmaster returns the server that runs on this cluster. A pid file alone says little: after a crash it may name a process that
// has nothing to do with us. The file's lines: pid, data directory, start time, port, …
func (c *cluster) postmaster() (postmaster, bool) {
	b, err := os.ReadFile(filepath.Join(c.data, "postmaster.pid"))
	if err != nil {
		return postmaster{}, false
	}
	lines := strings.Split(string(b), "\n")
	pid, err := strconv.Atoi(strings.TrimSpace(lines[0]))
	if err != nil {
		return postmaster{}, false
	}
	pid = max(pid, -pid) // negative: initdb's single-user server
	if pid < 2 || !worksIn(pid, c.data) {
		return postmaster{}, false
	}
	pm := postmaster{pid: pid}
	if len(lines) > 3 {
		pm.port, _ = strconv.Atoi(lines[3]) // 0 is a port that does not answer
	}
	return pm, true
}

// worksIn says whether the process lives and is a server on the directory: every server process works in it.
func worksIn(pid int, data string) bool {
	if runtime.GOOS == "linux" {
		wd, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", pid))
		return err == nil && wd == data
	}
	out, err := exec.Command("ps", "-o", "command=", "-p", strconv.Itoa(pid)).Output()
	return err == nil && strings.Contains(string(out), data)
}

// stop ends the server if one runs, and removes what a dead one left. The signals are those of pg_ctl: SIGINT disconnects
// everybody and shuts down, SIGQUIT leaves the rest to recovery.
func (c *cluster) stop(ctx context.Context) error {
	pm, ok := c.postmaster()
	// A cluster that was never finished holds nothing, and what creates it takes no SIGINT.
	if ok && !(c.state.Initialized && c.signal(ctx, pm.pid, syscall.SIGINT, 30*time.Second)) {
		c.log.Warn("stopping postgres at once, it does not shut down", "pid", pm.pid)
		if !c.signal(context.WithoutCancel(ctx), pm.pid, syscall.SIGQUIT, 10*time.Second) {
			return fmt.Errorf("postgres (pid %d) cannot be stopped", pm.pid)
		}
	}
	if err := os.Remove(filepath.Join(c.data, "postmaster.pid")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("postgres: stale pid file: %w", err)
	}
	return nil
}

// signal sends it and waits for the process to end.
func (c *cluster) signal(ctx context.Context, pid int, sig syscall.Signal, patience time.Duration) bool {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	_ = syscall.Kill(pid, sig) // if it is gone, so much the better: that is what we look for
	for worksIn(pid, c.data) {
		select {
		case <-ctx.Done():
			return false
		case <-time.After(10 * time.Millisecond):
		}
	}
	return true
}

func (c *cluster) pgctlStart(ctx context.Context) error {
	log := filepath.Join(c.dir, "postgres.log")
	var start int64
	if st, err := os.Stat(log); err == nil {
		if start = st.Size(); start > maxLog {
			start = 0
			if err := os.Rename(log, log+".1"); err != nil {
				return fmt.Errorf("postgres log: %w", err)
			}
		}
	}
	out, err := exec.CommandContext(ctx, filepath.Join(c.bin, "bin", "pg_ctl"), "start", "-w", "-t", "60", "-s", "-D", c.data, "-l", log).CombinedOutput()
	if err == nil {
		return nil
	}
	if b, logErr := os.ReadFile(log); logErr == nil {
		out = append(out, b[min(start, int64(len(b))):]...)
	}
	return fmt.Errorf("postgres did not start: %w: %s", err, bytes.TrimSpace(out[max(0, len(out)-4000):]))
}
