// Package testserver gives tests real servers beside Postgres: one of each kind for a test binary, started at first use, or the one that
// the environment names. Only tests import it, and TestMain must be pgtest.Main's, which stops the servers.
package testserver

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

const prefix = "refinery-test-"

// process is a server on a folder and a port of its own. The folder's name carries the process that made it, and it holds the server's
// process id, so that what a killed test binary left is found.
type process struct {
	name    string // of the program
	dir     string
	addr    string
	command func() *exec.Cmd
	ready   func() error // nil once the server answers

	cmd *exec.Cmd
}

func newProcess(name string) (*process, error) {
	if err := sweep(name); err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", fmt.Sprintf("%s%s-%d-", prefix, name, os.Getpid()))
	if err != nil {
		return nil, fmt.Errorf("test server: %w", err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, errors.Join(fmt.Errorf("test server: %w", err), os.RemoveAll(dir))
	}
	return &process{name: name, dir: dir, addr: l.Addr().String()}, l.Close()
}

const startTime = 30 * time.Second

// start starts the server, on what it had stored, and waits until it answers.
func (p *process) start() error {
	p.cmd = p.command()
	log, err := os.OpenFile(filepath.Join(p.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("start %s: %w", p.name, err)
	}
	defer log.Close() // the server has its own
	p.cmd.Stdout, p.cmd.Stderr = log, log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // Ctrl-C is ours to handle, and its children end with it
	if err := p.cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", p.name, err)
	}
	if err := os.WriteFile(filepath.Join(p.dir, "pid"), []byte(strconv.Itoa(p.cmd.Process.Pid)), 0o600); err != nil {
		return errors.Join(fmt.Errorf("start %s: %w", p.name, err), p.kill())
	}
	for begin := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		if err = p.ready(); err == nil {
			return nil
		}
		if time.Since(begin) > startTime {
			said, _ := os.ReadFile(log.Name())
			return errors.Join(fmt.Errorf("%s does not answer: %w\n%s", p.name, err, said), p.kill())
		}
	}
}

// kill ends the server as a crash does.
func (p *process) kill() error {
	if p.cmd == nil {
		return nil
	}
	err := syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL)
	_ = p.cmd.Wait() // that it was killed
	p.cmd = nil
	return err
}

func (p *process) stop() error {
	err := p.kill()
	removed := os.RemoveAll(p.dir)
	for range 20 { // a child of the server may write its last
		if removed == nil {
			break
		}
		time.Sleep(50 * time.Millisecond)
		removed = os.RemoveAll(p.dir)
	}
	return errors.Join(err, removed)
}

// Server is a server of a test's own, which it may kill.
type Server struct {
	process *process
	behind  []string
}

// own starts a server that ends with the test. err is of its making.
func own(t testing.TB, p *process, err error) {
	t.Helper()
	if err == nil {
		t.Cleanup(func() {
			if err := p.stop(); err != nil {
				t.Error("testserver:", err)
			}
		})
		err = p.start()
	}
	if err != nil {
		t.Fatal("testserver:", err)
	}
}

// Addr is host and port; it stays the same.
func (s *Server) Addr() string { return s.process.addr }

// Behind is where its nth further listener is, if it was made with some.
func (s *Server) Behind(n int) string { return s.behind[n] }

// Kill ends the server as a crash does.
func (s *Server) Kill(t testing.TB) {
	t.Helper()
	if err := s.process.kill(); err != nil {
		t.Fatal("testserver:", err)
	}
}

// Start starts it again on what it had stored.
func (s *Server) Start(t testing.TB) {
	t.Helper()
	if err := s.process.start(); err != nil {
		t.Fatal("testserver:", err)
	}
}

// sweep ends the servers that killed test binaries left, and removes their folders.
func sweep(name string) error {
	dirs, err := filepath.Glob(filepath.Join(os.TempDir(), prefix+name+"-*"))
	if err != nil {
		return fmt.Errorf("stale test servers: %w", err)
	}
	var errs []error
	for _, dir := range dirs {
		number, _, _ := strings.Cut(strings.TrimPrefix(filepath.Base(dir), prefix+name+"-"), "-")
		if pid, err := strconv.Atoi(number); err != nil || pid < 2 || !errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) {
			continue
		}
		text, err := os.ReadFile(filepath.Join(dir, "pid"))
		if server, bad := strconv.Atoi(string(text)); err == nil && bad == nil && server > 1 {
			// The number may be another process's by now: only one that works in this folder is ours.
			if where, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", server)); err == nil && where == dir {
				_ = syscall.Kill(server, syscall.SIGKILL)
			}
		}
		errs = append(errs, os.RemoveAll(dir))
	}
	return errors.Join(errs...)
}
