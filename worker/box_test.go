package worker

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/user"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// An order of any length is read as a whole: one whose JSON just filled the reader's buffer left its line end behind, which was taken for
// the worker's word to stop.
func TestOrderOfAnyLength(t *testing.T) {
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	w, err := New(Config{URL: "http://127.0.0.1:1", Dir: t.TempDir(), BuildUser: me.Username, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	w.builder = identity{uid: -1, gid: -1}
	b, err := w.newBox(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := b.close(); err != nil {
			t.Error(err)
		}
	}()
	for _, full := range []int{1536, 3584} { // what the decoder's buffer grows to
		for length := full - 2; length <= full+2; length++ {
			c := command{argv: []string{"/bin/sleep", "0.05"}, timeout: time.Minute, stdout: null, stderr: null, env: map[string]string{"PAD": ""}}
			data, err := json.Marshal(b.order(c))
			if err != nil || len(data) > length {
				t.Fatal(err, len(data))
			}
			c.env["PAD"] = strings.Repeat("x", length-len(data))
			if r, err := b.run(t.Context(), c); err != nil || r != (report{}) {
				t.Errorf("%d bytes: %+v, %v", length, r, err)
			}
		}
	}
}

// asInContainer runs f on a thread that, where it is root's, has what the root of a container has.
func asInContainer(t *testing.T, f func()) {
	keep := []uintptr{
		unix.CAP_CHOWN, unix.CAP_DAC_OVERRIDE, unix.CAP_FOWNER, unix.CAP_FSETID, unix.CAP_KILL, unix.CAP_SETFCAP, unix.CAP_SETGID,
		unix.CAP_SETPCAP, unix.CAP_SETUID,
	}
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlock: the thread ends with the goroutine
		var err error
		if os.Getuid() == 0 {
			var sets [2]unix.CapUserData
			for _, c := range keep {
				sets[0].Effective |= 1 << c
			}
			sets[0].Permitted = sets[0].Effective
			for c := uintptr(0); unix.Prctl(unix.PR_CAPBSET_READ, c, 0, 0, 0) == nil; c++ {
				if !slices.Contains(keep, c) {
					err = errors.Join(err, unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0))
				}
			}
			err = errors.Join(err, unix.Capset(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &sets[0]))
		}
		if err == nil {
			f()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// Limits hold and nothing is left behind where the worker is the root of a container.
func TestBoxInContainer(t *testing.T) {
	w, err := New(Config{URL: "http://127.0.0.1:1", Dir: shared, Memory: 200 << 20, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.identify(); err != nil {
		t.Fatal(err)
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	run := func(timeout time.Duration, argv ...string) (r report, err error) {
		asInContainer(t, func() {
			b, err2 := w.newBox(shared)
			if err = err2; err == nil {
				r, err = b.run(t.Context(), command{argv: argv, timeout: timeout, stdout: null, stderr: null})
				err = errors.Join(err, b.close())
			}
		})
		return r, err
	}

	// Each of them within the limit, all together not.
	r, err := run(20*time.Second, "/usr/bin/python3", "-c", "import os, time\nos.fork(), os.fork()\na = b'x' * (90 << 20)\ntime.sleep(1000)")
	if err != nil || r.Verdict != verdictMemory {
		t.Errorf("memory: %+v, %v", r, err)
	}

	go func() {
		for t.Context().Err() == nil {
			for _, p := range processes() {
				line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", p.pid))
				if string(line) == supervisorName+"\x00" && p.parent == os.Getpid() && running("987010") != nil {
					_ = unix.Kill(p.pid, unix.SIGKILL)
					return
				}
			}
			time.Sleep(10 * time.Millisecond)
		}
	}()
	if r, err = run(20*time.Second, "/bin/sleep", "987010"); err == nil {
		t.Errorf("a killed supervisor: %+v", r)
	}
	for range 100 { // until init has buried it
		if running("987010") == nil {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Error("a killed supervisor leaves its build behind")
}
