package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// serve starts the control plane as a program of its own.
func (p *program) serve() (pid int, stop func() time.Duration) {
	p.t.Helper()
	c := p.command("serve")
	c.Env = append(c.Env, "LOG_LEVEL=info")
	var out bytes.Buffer
	c.Stdout, c.Stderr = &out, &out
	if err := c.Start(); err != nil {
		p.t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- c.Wait() }()
	stopped := false
	stop = func() time.Duration {
		if stopped {
			return 0
		}
		stopped = true
		begin := time.Now()
		if err := c.Process.Signal(syscall.SIGINT); err != nil {
			p.t.Error(err)
		}
		select {
		case <-ended:
		case <-time.After(20 * time.Second):
			c.Process.Kill()
			p.t.Errorf("serve did not stop: %s", &out)
			<-ended
		}
		return time.Since(begin)
	}
	p.t.Cleanup(func() { stop() })
	for begin := time.Now(); ; time.Sleep(50 * time.Millisecond) {
		if status, _, err := get("http://" + p.api + "/health"); err == nil && status == http.StatusOK {
			return c.Process.Pid, stop
		}
		if time.Since(begin) > 30*time.Second {
			p.t.Fatalf("serve does not answer: %s", &out)
		}
	}
}

// rss is the resident memory of a process in MiB.
func rss(t *testing.T, pid int) float64 {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(data), "VmRSS:")
	kb, err := strconv.Atoi(strings.Fields(rest)[0])
	if err != nil {
		t.Fatal(err)
	}
	return float64(kb) / 1024
}

// enqueue posts from 16 clients for a while, without waiting for outcomes, and says how many a second were handled and the longest answer. With
// pace, each client waits so long between two.
func (p *program) enqueue(window, pace time.Duration) (rate float64, longest time.Duration) {
	p.t.Helper()
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 16}}
	defer client.CloseIdleConnections()
	var count, most atomic.Int64
	var wg sync.WaitGroup
	begin := time.Now()
	for range 16 {
		wg.Go(func() {
			for time.Since(begin) < window {
				body := fmt.Sprintf(`{"package":"live-%d","version":"1.0","python_tag":"cp311","platform_tag":"linux_x86_64"}`, serial.Add(1))
				r, _ := http.NewRequest(http.MethodPost, "http://"+p.api+"/queue/enqueue", strings.NewReader(body))
				r.Header.Set("Content-Type", "application/json")
				r.Header.Set("Prefer", "respond-async")
				sent := time.Now()
				answer, err := client.Do(r)
				if err != nil {
					p.t.Error(err)
					return
				}
				_, _ = io.Copy(io.Discard, answer.Body)
				answer.Body.Close()
				if answer.StatusCode != http.StatusAccepted {
					p.t.Error(answer.Status)
					return
				}
				count.Add(1)
				took := int64(time.Since(sent))
				for old := most.Load(); took > old && !most.CompareAndSwap(old, took); old = most.Load() {
				}
				time.Sleep(pace)
			}
		})
	}
	wg.Wait()
	return float64(count.Load()) / time.Since(begin).Seconds(), time.Duration(most.Load())
}

// 500 followers over real connections, one of which does not read: they cost at most 100 MB, each sees every event once, writes go on, and
// all streams end when the program is told to stop.
func TestFiveHundredFollowers(t *testing.T) {
	const followers = 500
	p := newProgram(t)
	pid, stop := p.serve()
	alone, _ := p.enqueue(2*time.Second, 0)
	slow, slowMost := p.enqueue(2*time.Second, 100*time.Millisecond)
	time.Sleep(time.Second)
	before := rss(t, pid)
	var seen [followers]atomic.Int64
	var readers sync.WaitGroup
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for n := range followers {
		conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", p.api)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if _, err := fmt.Fprintf(conn, "GET /events HTTP/1.1\r\nHost: %s\r\n\r\n", p.api); err != nil {
			t.Fatal(err)
		}
		if n == followers-1 {
			break // never reads
		}
		in := bufio.NewReaderSize(conn, 32<<10)
		if answer, err := http.ReadResponse(in, nil); err != nil || answer.StatusCode != http.StatusOK {
			t.Fatal(answer, err)
		} else {
			readers.Go(func() {
				last := int64(0)
				lines := bufio.NewScanner(answer.Body)
				lines.Buffer(make([]byte, 4<<10), 1<<20)
				for lines.Scan() {
					id, ok := bytes.CutPrefix(lines.Bytes(), []byte("id: "))
					if !ok {
						continue
					}
					at, err := strconv.ParseInt(string(id), 10, 64)
					if err != nil || last > 0 && at != last && at != last+1 {
						t.Errorf("follower %d: %q behind %d", n, id, last)
						return
					}
					last = at
					seen[n].Store(at)
				}
			})
		}
	}
	idle := rss(t, pid)
	with, withMost := p.enqueue(4*time.Second, 100*time.Millisecond)
	paced := rss(t, pid)
	full, _ := p.enqueue(4*time.Second, 0)
	busy := rss(t, pid)
	if with < slow/2 { // much less than is seen, since others may use the machine
		t.Errorf("%.0f posts/s at a leisurely pace, %.0f without followers", with, slow)
	}
	pool := p.pool()
	defer pool.Close()
	var head int64
	for begin := time.Now(); ; time.Sleep(100 * time.Millisecond) {
		if err := pool.QueryRow(t.Context(), `select position from head`).Scan(&head); err != nil {
			t.Fatal(err)
		}
		done := 0
		for n := range followers - 1 {
			if seen[n].Load() == head {
				done++
			}
		}
		if done == followers-1 {
			break
		}
		if time.Since(begin) > time.Minute {
			t.Fatalf("%d of %d followers saw everything up to %d", done, followers-1, head)
		}
	}
	t.Logf("%d events; %.0f posts/s alone, %.0f with followers; leisurely %.0f (longest %v), with followers %.0f (longest %v); memory in MiB: %.0f before, %.0f idle, %.0f leisurely, %.0f busy",
		head, alone, full, slow, slowMost, with, withMost, before, idle, paced, busy)
	if most := max(idle, paced, busy) - before; most > 100 {
		t.Errorf("%d followers cost %.0f MiB", followers, most)
	}
	if took := stop(); took > stopTime {
		t.Errorf("stopping took %v", took)
	}
	readers.Wait() // their streams have ended
}
