package worker

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// These names as argv[0] make this program something else than it otherwise is. A supervisor starts a launcher, which takes the limits and
// the user upon itself and becomes the command: so no moment passes without them, and the supervisor itself has none.
const (
	supervisorName = "refinery-supervisor"
	launcherName   = "refinery-launcher"
)

// A supervisor's descriptors beside the command's own three.
const (
	orderFD  = 3 // reads an order; the command lives as long as the other end stays open
	reportFD = 4 // writes a report
)

// order tells a supervisor what to run. No limit is zero.
type order struct {
	Argv      []string
	Env       []string `json:",omitempty"`
	Dir       string
	UID, GID  int           // -1: stay who we are
	Exclusive bool          // nothing else runs as UID, so everything that does may be killed
	Folder    string        // whose size Disk limits
	Timeout   time.Duration // of the command
	Memory    int64         // bytes, of each process and of all together
	Disk      int64         // bytes in Folder, and of each file
	Processes int           // and threads
}

// Why a supervisor ended a command.
const (
	verdictTimeout = "timeout"
	verdictMemory  = "memory"
	verdictDisk    = "disk"
	verdictForks   = "processes"
	verdictStopped = "stopped" // the worker asked, or went away
)

type report struct {
	Code    int    // exit code of the command; 128 + signal
	Verdict string // empty: it ended by itself
	Error   string // it could not be started
}

func init() {
	switch {
	case len(os.Args) == 1 && os.Args[0] == supervisorName:
		runtime.LockOSThread() // of the main thread, which starts the command: what prctl sets belongs to a thread
		supervise()
		os.Exit(0)
	case len(os.Args) == 2 && os.Args[0] == launcherName:
		fmt.Fprintln(os.Stderr, "the command cannot be started:", launch(os.Args[1]))
		os.Exit(126)
	}
}

type supervisor struct {
	order
	main    int // the command's process
	mu      sync.Mutex
	verdict string
}

func supervise() {
	lifeline := os.NewFile(orderFD, "order")
	out := os.NewFile(reportFD, "report")
	unix.CloseOnExec(orderFD)
	unix.CloseOnExec(reportFD)
	unix.CloseOnExec(reportFD + 1) // the lock of the user, if there is one
	s := &supervisor{}
	r, err := report{}, json.NewDecoder(lifeline).Decode(&s.order)
	if err == nil {
		r, err = s.run(lifeline)
	}
	if err != nil {
		r.Error = err.Error()
	}
	_ = json.NewEncoder(out).Encode(r) // without a worker there is nobody to tell
}

func (s *supervisor) run(lifeline *os.File) (report, error) {
	// Orphans of the command become ours, also those that left its session, and no set-user-id program gives it more rights.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return report{}, fmt.Errorf("become a subreaper: %w", err)
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return report{}, fmt.Errorf("give up new privileges: %w", err)
	}
	self, err := os.Executable()
	if err != nil {
		return report{}, fmt.Errorf("find this program: %w", err)
	}
	o := s.order
	o.Env = nil // it has that as its own
	how, err := json.Marshal(o)
	if err != nil {
		return report{}, fmt.Errorf("start a launcher: %w", err)
	}
	s.main, err = syscall.ForkExec(self, []string{launcherName, string(how)}, &syscall.ProcAttr{
		Dir: s.Dir, Env: s.Env, Files: []uintptr{0, 1, 2}, Sys: &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return report{}, fmt.Errorf("start a launcher: %w", err)
	}
	go func() {
		// It ends when the worker closes it or dies. Behind the order there may still be its line end to read.
		_, _ = io.Copy(io.Discard, lifeline)
		s.stop(verdictStopped)
	}()
	time.AfterFunc(s.Timeout, func() { s.stop(verdictTimeout) })
	go s.watchProcesses()
	go s.watchDisk()

	code := s.wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	return report{Code: code, Verdict: s.verdict}, nil
}

// launch becomes the command. It returns only when it cannot.
func launch(how string) error {
	var o order
	if err := json.Unmarshal([]byte(how), &o); err != nil {
		return err
	}
	env := os.Environ()
	// RLIMIT_NPROC counts all that a user runs, whoever started it.
	processes, uid := uint64(o.Processes), os.Getuid()
	if o.UID >= 0 {
		uid = o.UID
	}
	if !o.Exclusive {
		processes = 4*processes + uint64(threadsOf(uid)) // the supervisor counts; this is for what is faster than it
	}
	if o.UID >= 0 {
		if err := errors.Join(syscall.Setgroups([]int{}), syscall.Setgid(o.GID), syscall.Setuid(o.UID)); err != nil {
			return fmt.Errorf("become user %d: %w", o.UID, err)
		}
	}
	// RLIMIT_DATA counts what is written to; RLIMIT_AS would also count what is merely reserved, which some runtimes do by terabytes.
	// It comes last, because it holds for this program too: from then on nothing is allocated.
	path, err := syscall.BytePtrFromString(o.Argv[0])
	argv, err2 := syscall.SlicePtrFromStrings(o.Argv)
	envp, err3 := syscall.SlicePtrFromStrings(env)
	if err := errors.Join(err, err2, err3); err != nil {
		return err
	}
	for _, l := range []struct {
		what  int
		limit uint64
	}{
		{unix.RLIMIT_CORE, 0},
		{unix.RLIMIT_NOFILE, 4096}, // some programs close all that they might have open
		{unix.RLIMIT_FSIZE, uint64(o.Disk)},
		{unix.RLIMIT_NPROC, processes},
		{unix.RLIMIT_DATA, uint64(o.Memory)},
	} {
		var now unix.Rlimit
		if err := unix.Getrlimit(l.what, &now); err != nil {
			return fmt.Errorf("read limit %d: %w", l.what, err)
		}
		limit := min(l.limit, now.Max)
		if err := unix.Setrlimit(l.what, &unix.Rlimit{Cur: limit, Max: limit}); err != nil {
			return fmt.Errorf("set limit %d: %w", l.what, err)
		}
	}
	_, _, errno := syscall.RawSyscall(syscall.SYS_EXECVE, uintptr(unsafe.Pointer(path)), uintptr(unsafe.Pointer(&argv[0])),
		uintptr(unsafe.Pointer(&envp[0])))
	return errno
}

// wait reaps until the command has ended, then kills and reaps all that it left behind.
func (s *supervisor) wait() (code int) {
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, 0, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || pid == s.main {
			code = status.ExitStatus()
			if status.Signaled() {
				code = 128 + int(status.Signal())
			}
			break
		}
	}
	for {
		s.kill()
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, unix.WNOHANG, nil)
		switch {
		case errors.Is(err, unix.ECHILD):
			return code
		case pid == 0:
			time.Sleep(2 * time.Millisecond)
		}
	}
}

// stop ends the command for a reason; the first reason counts.
func (s *supervisor) stop(verdict string) {
	s.mu.Lock()
	if s.verdict == "" {
		s.verdict = verdict
	}
	s.mu.Unlock()
	for range 500 { // until wait has reaped the command and goes on by itself
		s.kill()
		if unix.Kill(s.main, 0) != nil {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// kill sends SIGKILL to everything that the command started and that is still there.
func (s *supervisor) kill() {
	if s.Exclusive && os.Getuid() == 0 {
		killUser(s.UID)
		return
	}
	_ = unix.Kill(-s.main, unix.SIGKILL) // the whole session at once, before it can fork
	for _, p := range s.tree() {
		_ = unix.Kill(p.pid, unix.SIGKILL)
	}
}

// killUser kills every process of a user at once, so that none can fork away: kill(-1) by a thread that has become that user.
func killUser(uid int) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never unlock: the thread ends with the goroutine
		if _, _, e := unix.RawSyscall(unix.SYS_SETRESUID, uintptr(uid), uintptr(uid), 0); e == 0 {
			_ = unix.Kill(-1, unix.SIGKILL)
		}
	}()
	<-done
}

// watchProcesses looks after the memory, and after the number of processes where RLIMIT_NPROC counts those of others too.
func (s *supervisor) watchProcesses() {
	for range time.Tick(250 * time.Millisecond) {
		tree := s.tree()
		threads := 0
		for _, p := range tree {
			threads += p.threads
		}
		if !s.Exclusive && threads > s.Processes {
			s.stop(verdictForks)
			return
		}
		// What processes share since a fork counts for each of them at first, and only once where it matters.
		for _, measure := range []func(process) int64{process.memory, process.share} {
			var sum int64
			for _, p := range tree {
				sum += measure(p)
			}
			if sum <= s.Memory {
				tree = nil
				break
			}
		}
		if tree != nil {
			s.stop(verdictMemory)
			return
		}
	}
}

func (s *supervisor) watchDisk() {
	for pause := time.Second; ; {
		time.Sleep(pause)
		began := time.Now()
		if sizeOf(s.Folder) > s.Disk {
			s.stop(verdictDisk)
			return
		}
		pause = max(time.Second, 20*time.Since(began)) // a folder of very many files costs little all the same
	}
}

type process struct{ pid, parent, threads int }

// tree lists the processes below this one.
func (s *supervisor) tree() []process {
	all := processes()
	below := map[int]bool{os.Getpid(): true}
	var found []process
	for grew := true; grew; {
		grew = false
		for _, p := range all {
			if below[p.parent] && !below[p.pid] {
				below[p.pid] = true
				found = append(found, p)
				grew = true
			}
		}
	}
	return found
}

func processes() []process {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	var found []process
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		stat, err := os.ReadFile("/proc/" + e.Name() + "/stat") // pid (name) state ppid …, threads is the 20th field
		if err != nil {
			continue
		}
		fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
		if len(fields) < 18 {
			continue
		}
		parent, err := strconv.Atoi(fields[1])
		threads, err2 := strconv.Atoi(fields[17])
		if err == nil && err2 == nil {
			found = append(found, process{pid, parent, threads})
		}
	}
	return found
}

// memory is what the process holds that no file backs, in bytes.
func (p process) memory() int64 {
	statm, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", p.pid)) // size resident shared …
	fields := strings.Fields(string(statm))
	if err != nil || len(fields) < 3 {
		return 0
	}
	resident, _ := strconv.ParseInt(fields[1], 10, 64)
	shared, _ := strconv.ParseInt(fields[2], 10, 64)
	return (resident - shared) * int64(os.Getpagesize())
}

// share is memory, with what is shared divided among those who share it. The kernel takes longer to say so.
func (p process) share() int64 {
	rollup, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", p.pid))
	if errors.Is(err, fs.ErrPermission) {
		return p.memory() // the root of a container may not ask about processes of others (CAP_SYS_PTRACE)
	}
	if err != nil {
		return 0 // gone
	}
	for line := range strings.Lines(string(rollup)) {
		if v, ok := strings.CutPrefix(line, "Pss_Anon:"); ok {
			kib, _ := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(v), "kB")), 10, 64)
			return kib << 10
		}
	}
	return p.memory() // a kernel before 5.4
}

// user is the process's real user; -1: it is gone.
func (p process) user() int {
	status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.pid))
	for line := range strings.Lines(string(status)) {
		if v, ok := strings.CutPrefix(line, "Uid:"); ok {
			if f := strings.Fields(v); len(f) > 0 {
				uid, _ := strconv.Atoi(f[0]) // the kernel writes numbers
				return uid
			}
		}
	}
	return -1
}

// threadsOf counts the threads of a user.
func threadsOf(uid int) (count int) {
	for _, p := range processes() {
		if p.user() == uid {
			count += p.threads
		}
	}
	return count
}

// sizeOf is what a folder takes on disk. It follows no links.
func sizeOf(folder string) (size int64) {
	_ = filepath.WalkDir(folder, func(_ string, e fs.DirEntry, err error) error {
		if err != nil {
			return nil // gone meanwhile
		}
		if info, err := e.Info(); err == nil {
			if st, ok := info.Sys().(*syscall.Stat_t); ok {
				size += st.Blocks * 512
			}
		}
		return nil
	})
	return size
}
