package postgres_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/wheelrefinery/refinery/internal/pgtest"
	"github.com/wheelrefinery/refinery/internal/postgres"
)

// childDir, when set, makes this binary a program that starts Postgres there, says so, and waits to be killed.
const childDir, childCache = "REFINERY_TEST_CHILD_DIR", "REFINERY_TEST_CHILD_CACHE"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childDir); dir != "" {
		s, err := postgres.Start(context.Background(), dir, postgres.Options{CacheDir: os.Getenv(childCache)})
		if err != nil {
			fmt.Println("error:", errors.Is(err, postgres.ErrUnavailable), err)
			os.Exit(1)
		}
		fmt.Println(s.DSN())
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}
	pgtest.Main(m)
}

func TestStart(t *testing.T) {
	dir := tempDir(t)
	s := start(t, dir, nil)
	exec1(t, s, "create table kept ()")
	for name, want := range map[string]string{
		"listen_addresses": "127.0.0.1", "unix_socket_directories": "", "jit": "off", "fsync": "on", "full_page_writes": "on",
		"synchronous_commit": "on", "max_connections": "100", "shared_buffers": "128MB", "max_wal_size": "1GB",
		"server_encoding": "UTF8", "timezone": "UTC",
	} {
		if got := show(t, s, name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	pid := serverPid(t, dir)
	if os.Geteuid() == 0 {
		if uid := uids(t, fmt.Sprintf("/proc/%d/status", pid))[0]; uid == "0" {
			t.Error("the server runs as root")
		}
	}
	for _, name := range []string{"state.json", "postgres.log"} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v", name, info.Mode())
		}
	}
	stop(t, s)
	if syscall.Kill(pid, 0) == nil && running(pid) {
		t.Error("the server runs after Stop")
	}

	began := time.Now()
	again := start(t, dir, nil)
	if took := time.Since(began); took > 1500*time.Millisecond {
		t.Errorf("starting an existing cluster took %v", took)
	}
	exec1(t, again, "insert into kept default values")
	if again.DSN() != s.DSN() {
		t.Error("port or password changed though the port was free")
	}
}

// A server that a killed process left is taken over; one with other parameters is replaced.
func TestAdopt(t *testing.T) {
	dir := tempDir(t)
	start(t, dir, nil) // fills the cache and makes the cluster
	if err := postgres.Stop(t.Context(), dir); err != nil {
		t.Fatal(err)
	}
	child(t, dir)
	pid := serverPid(t, dir)
	s := start(t, dir, nil)
	if got := serverPid(t, dir); got != pid {
		t.Errorf("the running server (pid %d) was not taken over: pid %d runs", pid, got)
	}
	exec1(t, s, "create table kept ()")
	s = start(t, dir, map[string]string{"work_mem": "7MB"})
	if serverPid(t, dir) == pid {
		t.Error("the server with other parameters was taken over")
	}
	if got := show(t, s, "work_mem"); got != "7MB" {
		t.Errorf("work_mem is %s", got)
	}
	exec1(t, s, "insert into kept default values")
	// Its port is ours from the file; when the server does not let us in, it is not taken over either.
	exec1(t, s, "alter user refinery password 'other'")
	if _, err := postgres.Start(t.Context(), dir, postgres.Options{CacheDir: cache(t), Parameters: map[string]string{"work_mem": "7MB"}}); err == nil {
		t.Error("a server that refuses our password passed for ours")
	} else if strings.Contains(err.Error(), password(t, s)) {
		t.Error("the error shows the password")
	}
}

// A pid file that a crash left is no obstacle, even if its number now belongs to another process of the same user, which
// Postgres itself takes for a server.
func TestStalePidFile(t *testing.T) {
	dir := tempDir(t)
	s := start(t, dir, nil)
	exec1(t, s, "create table kept ()")
	file := filepath.Join(dir, "data", "postmaster.pid")
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(serverPid(t, dir), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	s = start(t, dir, nil) // at once: its children may still be ending
	exec1(t, s, "insert into kept default values")
	stop(t, s)

	owner, err := os.Stat(filepath.Join(dir, "data"))
	if err != nil {
		t.Fatal(err)
	}
	sleep := exec.Command("sleep", "60")
	st := owner.Sys().(*syscall.Stat_t)
	if os.Geteuid() == 0 {
		sleep.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: st.Uid, Gid: st.Gid}}
		sleep.Dir = "/"
	}
	if err := sleep.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = sleep.Process.Kill(); _ = sleep.Wait() }()
	_, rest, _ := strings.Cut(string(text), "\n")
	if err := os.WriteFile(file, fmt.Appendf(nil, "%d\n%s", sleep.Process.Pid, rest), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(file, int(st.Uid), int(st.Gid)); err != nil {
		t.Fatal(err)
	}
	exec1(t, start(t, dir, nil), "insert into kept default values")
	if sleep.Process.Signal(syscall.Signal(0)) != nil {
		t.Error("the other process was stopped")
	}
}

// What a process leaves that is killed while it sets up is made again.
func TestUnfinishedSetup(t *testing.T) {
	dir := tempDir(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if _, err := postgres.Start(ctx, dir, postgres.Options{CacheDir: cache(t)}); err == nil {
		t.Fatal("Start ignores its context")
	}
	if err := os.MkdirAll(filepath.Join(dir, "data"), 0o755); err != nil {
		t.Fatal(err)
	}
	own(t, dir, filepath.Join(dir, "data"))
	if err := os.WriteFile(filepath.Join(dir, "data", "PG_VERSION"), []byte("17\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	exec1(t, start(t, dir, nil), "create table kept ()")
}

// Two processes that share an empty cache do not run half-unpacked binaries.
func TestSharedCache(t *testing.T) {
	from := cache(t)
	start(t, tempDir(t), nil)
	shared := tempDir(t)
	archives, _ := filepath.Glob(filepath.Join(from, "*.txz"))
	if len(archives) == 0 {
		t.Fatal("no archive in the cache")
	}
	b, err := os.ReadFile(archives[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(shared, filepath.Base(archives[0])), b, 0o644); err != nil {
		t.Fatal(err)
	}
	half := filepath.Join(shared, "bin-"+postgres.Version, "bin")
	if err := os.MkdirAll(half, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(half, "pg_ctl"), []byte("half"), 0o755); err != nil {
		t.Fatal(err)
	}
	own(t, from, shared, filepath.Dir(half), half, filepath.Join(half, "pg_ctl"))
	var wg sync.WaitGroup
	for range 2 {
		dir := tempDir(t)
		wg.Go(func() {
			s, err := postgres.Start(t.Context(), dir, postgres.Options{CacheDir: shared})
			if err != nil {
				t.Error(err)
				return
			}
			if err := s.Stop(context.Background()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

// A cluster of another version is refused and left alone.
func TestOtherVersion(t *testing.T) {
	dir := tempDir(t)
	stop(t, start(t, dir, nil))
	file := filepath.Join(dir, "data", "PG_VERSION")
	if err := os.WriteFile(file, []byte("16\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	fresh := tempDir(t) // without binaries, which is when the library looks at the version
	archives, _ := filepath.Glob(filepath.Join(cache(t), "*.txz"))
	if err := os.Symlink(archives[0], filepath.Join(fresh, filepath.Base(archives[0]))); err != nil {
		t.Fatal(err)
	}
	_, err := postgres.Start(t.Context(), dir, postgres.Options{CacheDir: fresh})
	if err == nil || !strings.Contains(err.Error(), "version 16") {
		t.Errorf("error: %v", err)
	}
	if _, err := os.Stat(filepath.Join(dir, "data", "base")); err != nil {
		t.Error("the data is gone:", err)
	}
}

func TestUnreachable(t *testing.T) {
	if os.Geteuid() != 0 {
		return // an ordinary user's own folders are open to it
	}
	closed := t.TempDir() // below a folder that is root's alone
	_, err := postgres.Start(t.Context(), filepath.Join(closed, "pg"), postgres.Options{})
	if err == nil || !strings.Contains(err.Error(), filepath.Dir(closed)+":") || !strings.Contains(err.Error(), "DATA_DIR") {
		t.Errorf("error: %v", err)
	}
}

func TestNoNetwork(t *testing.T) {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childDir+"="+tempDir(t), childCache+"=", "HTTPS_PROXY=http://127.0.0.1:1", "NO_PROXY=", "no_proxy=")
	out, _ := cmd.CombinedOutput()
	if !strings.Contains(string(out), "error: true") || !strings.Contains(string(out), "POSTGRES_DSN") {
		t.Errorf("output: %s", out)
	}
}

func TestParameterOfTwoLines(t *testing.T) {
	_, err := postgres.Start(t.Context(), tempDir(t), postgres.Options{CacheDir: cache(t), Parameters: map[string]string{"work_mem": "1MB\nfsync = off"}})
	if err == nil || !strings.Contains(err.Error(), "work_mem") {
		t.Errorf("error: %v", err)
	}
}

// Root runs what depends on it again as an ordinary user.
func TestAsOrdinaryUser(t *testing.T) {
	if os.Geteuid() != 0 {
		return // all tests do
	}
	start(t, tempDir(t), nil) // fills the cache, which the child may only read
	home := tempDir(t)
	self := filepath.Join(home, "test")
	b, err := os.ReadFile(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(self, b, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(home, ".cache"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(cache(t), filepath.Join(home, ".cache", "refinery-test")); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(home, 65534, 65534); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, "-test.v", "-test.run", "^(TestStart|TestAdopt|TestStalePidFile)$")
	cmd.Dir = home
	cmd.Env = append(os.Environ(), "HOME="+home, "TMPDIR="+home, "XDG_CACHE_HOME=")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := cmd.CombinedOutput()
	if err != nil || strings.Count(string(out), "--- PASS: ") != 3 {
		t.Errorf("%v\n%s", err, out)
	}
}

// tempDir is reachable by the user that Postgres runs as.
func tempDir(t *testing.T) string {
	t.Helper()
	dir, err := pgtest.TempDir()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func cache(t *testing.T) string {
	t.Helper()
	dir, err := pgtest.CacheDir()
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

func start(t *testing.T, dir string, parameters map[string]string) *postgres.Server {
	t.Helper()
	s, err := postgres.Start(t.Context(), dir, postgres.Options{
		Logger: slog.New(slog.NewTextHandler(t.Output(), nil)), Parameters: parameters, CacheDir: cache(t),
	})
	if errors.Is(err, postgres.ErrUnavailable) {
		pgtest.Missing(t, "Postgres", err.Error())
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stop(t, s) }) // once more does no harm
	return s
}

func stop(t *testing.T, s *postgres.Server) {
	t.Helper()
	if err := s.Stop(context.Background()); err != nil {
		t.Error(err)
	}
}

// child starts Postgres on dir in another process and kills that one.
func child(t *testing.T, dir string) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childDir+"="+dir, childCache+"="+cache(t))
	in, err1 := cmd.StdinPipe()
	out, err2 := cmd.StdoutPipe()
	if err := errors.Join(err1, err2, cmd.Start()); err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil || !strings.HasPrefix(line, "postgres://") {
		t.Errorf("child: %q, %v", line, err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // it was killed
}

func connect(t *testing.T, s *postgres.Server) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), s.DSN())
	if err != nil {
		t.Fatal(err)
	}
	return conn
}

func exec1(t *testing.T, s *postgres.Server, sql string) {
	t.Helper()
	conn := connect(t, s)
	defer conn.Close(context.Background())
	if _, err := conn.Exec(t.Context(), sql); err != nil {
		t.Error(err)
	}
}

func show(t *testing.T, s *postgres.Server, name string) (v string) {
	t.Helper()
	conn := connect(t, s)
	defer conn.Close(context.Background())
	if err := conn.QueryRow(t.Context(), "select current_setting($1)", name).Scan(&v); err != nil {
		t.Fatal(err)
	}
	return v
}

func password(t *testing.T, s *postgres.Server) string {
	t.Helper()
	cfg, err := pgx.ParseConfig(s.DSN())
	if err != nil {
		t.Fatal(err)
	}
	return cfg.Password
}

func serverPid(t *testing.T, dir string) int {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, "data", "postmaster.pid"))
	if err != nil {
		t.Fatal(err)
	}
	first, _, _ := strings.Cut(string(b), "\n")
	pid, err := strconv.Atoi(first)
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

// running is false for a zombie, which nobody may have waited for yet.
func running(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && !strings.Contains(string(b), ") Z ")
}

// The rest of the program stays root, whatever thread the runtime gives: also the main one, which never ends.
func TestThreadsStayRoot(t *testing.T) {
	if os.Geteuid() != 0 {
		return // nothing changes
	}
	dir := tempDir(t)
	for range 300 {
		if err := postgres.Stop(t.Context(), dir); err != nil {
			t.Fatal(err)
		}
	}
	foreign := func() (n int) {
		tasks, _ := filepath.Glob("/proc/self/task/*/status")
		for _, task := range tasks {
			if u := uids(t, task); len(u) > 0 && u[1] != "0" {
				n++
			}
		}
		return n
	}
	deadline := time.Now().Add(2 * time.Second)
	for foreign() > 0 { // a thread ends a moment after its goroutine
		if time.Now().After(deadline) {
			t.Fatalf("%d threads of this process are not root's any more", foreign())
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// uids returns the real, effective, saved and file system user of a process or thread.
func uids(t *testing.T, status string) []string {
	t.Helper()
	b, err := os.ReadFile(status)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
		return nil // a thread that has ended
	}
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(b), "\nUid:")
	line, _, _ := strings.Cut(rest, "\n")
	return strings.Fields(line)
}

// own gives files to whom like belongs to.
func own(t *testing.T, like string, paths ...string) {
	t.Helper()
	info, err := os.Stat(like)
	if err != nil {
		t.Fatal(err)
	}
	st := info.Sys().(*syscall.Stat_t)
	for _, path := range paths {
		if err := os.Chown(path, int(st.Uid), int(st.Gid)); err != nil {
			t.Fatal(err)
		}
	}
}
