package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/wheelrefinery/refinery/eventlog"
	"github.com/wheelrefinery/refinery/events"
)

// BenchmarkMillionLines sends a log of a million lines as a worker does, chunk by chunk, each with the wait for its read models, and reads it in every way
// there is, while another client asks for /health and a third for /queue. Without the search's index it is sent once more for comparison.
func BenchmarkMillionLines(b *testing.B) {
	const lines = 1_000_000
	for b.Loop() {
		p := startBench(b)
		var longest atomic.Int64
		stop, watching := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(watching)
			for {
				select {
				case <-stop:
					return
				case <-time.After(5 * time.Millisecond):
				}
				for _, path := range []string{"/health", "/queue"} {
					begin := time.Now()
					if status, _, err := get(p.url() + path); err != nil || status != http.StatusOK {
						b.Error(path, status, err)
						return
					}
					longest.Store(max(longest.Load(), int64(time.Since(begin))))
				}
			}
		}()
		size := p.sendLog(b, "flask", lines, "ingest")
		var n int
		p.timed(b, "tail", "?tail=1000", func(body io.Reader) {
			var log struct {
				Lines      []string `json:"lines"`
				TotalLines int      `json:"total_lines"`
			}
			if err := json.NewDecoder(body).Decode(&log); err != nil || len(log.Lines) != 1000 || log.TotalLines != lines {
				b.Error(len(log.Lines), log.TotalLines, err)
			}
		})
		p.timed(b, "range", "?from=500000&to=501000", func(body io.Reader) {
			if text, err := io.ReadAll(body); err != nil || !strings.Contains(string(text), "line 500000 ") || strings.Contains(string(text), "line 501001 ") {
				b.Error(len(text), err)
			}
		})
		p.timed(b, "text", "?format=text", func(body io.Reader) {
			if read, err := io.Copy(io.Discard, body); err != nil || read != int64(size) {
				b.Error(read, size, err)
			}
		})
		p.timed(b, "follow", "?follow=true", func(body io.Reader) {
			for s := bufio.NewScanner(body); n < lines && s.Scan(); {
				if bytes.HasPrefix(s.Bytes(), []byte("event: line")) {
					n++
				}
			}
		})
		if n != lines {
			b.Errorf("%d lines followed", n)
		}
		close(stop)
		<-watching
		b.ReportMetric(float64(longest.Load())/1e6, "longest-read-ms")
		if _, err := p.pool.Exec(b.Context(), `drop index logs.pieces_5`); err != nil {
			b.Fatal(err)
		}
		p.sendLog(b, "jinja2", lines, "ingest-without-index")
	}
}

// sendLog makes a build that is leased and sends a log for it; metric gets the MB/s.
func (p *plane) sendLog(b *testing.B, name string, lines int, metric string) (size int) {
	b.Helper()
	id := events.BuildID{Name: name, Version: "1.0", PythonTag: "cp311", PlatformTag: "linux_x86_64"}
	results, err := p.log.Append(b.Context(), eventlog.Entry{
		Outcome: eventlog.Outcome{Command: uuid.New(), Name: "test", Stream: id.Stream(), Actor: "bench", Status: eventlog.Applied},
		Events:  []events.Event{events.BuildQueued{}, events.BuildLeased{Attempt: 1}},
	})
	if err != nil || results[0].Err != nil {
		b.Fatal(err, results)
	}
	client := &http.Client{Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	begin := time.Now()
	for line, chunk := 1, 0; line <= lines; chunk++ {
		var text strings.Builder
		for ; line <= lines && text.Len() < 60<<10; line++ {
			fmt.Fprintf(&text, "line %d gcc -c src/%s_%x.c -o m.o\n", line, name, line*7919%65536)
		}
		size += text.Len()
		body, _ := json.Marshal(map[string]any{"chunk": chunk, "text": text.String()}) // of strings and numbers
		answer, err := client.Post(p.url()+"/logs/"+name+"/1.0?python_tag=cp311&platform_tag=linux_x86_64&attempt=1", "application/json", bytes.NewReader(body))
		if err != nil {
			b.Fatal(err)
		}
		text.Reset()
		_, _ = io.Copy(&text, answer.Body)
		answer.Body.Close()
		if answer.StatusCode != http.StatusOK {
			b.Fatal(answer.Status, text.String())
		}
	}
	b.ReportMetric(float64(size)/1e6/time.Since(begin).Seconds(), metric+"-MB/s")
	return size
}

func (p *plane) timed(b *testing.B, name, query string, read func(io.Reader)) {
	b.Helper()
	begin := time.Now()
	answer, err := http.Get(p.url() + "/logs/flask/1.0" + query)
	if err != nil {
		b.Fatal(err)
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		b.Fatal(query, answer.Status)
	}
	read(answer.Body)
	b.ReportMetric(float64(time.Since(begin).Microseconds())/1000, name+"-ms")
}
