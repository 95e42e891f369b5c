package readapi_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/wheelrefinery/refinery/events"
	"github.com/wheelrefinery/refinery/readapi"
)

// log appends text to the first attempt of a build in chunks of whole lines.
func (f *fixture) logs(b events.BuildID, chunks ...string) {
	f.t.Helper()
	if f.versions[b.Stream()] == 0 {
		f.add(b.Stream(), events.BuildQueued{}, events.BuildLeased{Attempt: 1})
	}
	stream := b.Log(1)
	first := 1
	var es []events.Event
	for n, text := range chunks {
		es = append(es, events.LogAppended{Chunk: n, FirstLine: first, Lines: strings.Count(text, "\n"), Text: text})
		first += strings.Count(text, "\n")
	}
	f.add(stream, es...)
}

type logLine struct {
	Line int
	Text string
}

// line is the next event of a followed log; ok is false at its end.
func (f *follower) line() (l logLine, ok bool) {
	f.t.Helper()
	b := f.event()
	if b.kind == "end" {
		if _, err := f.next(); err == nil {
			f.t.Error("the stream goes on after its end")
		}
		return l, false
	}
	if err := json.Unmarshal([]byte(b.data), &l); err != nil || b.kind != "line" || b.id != strconv.Itoa(l.Line) {
		f.t.Fatal(b, err)
	}
	return l, true
}

func TestFollowALog(t *testing.T) {
	defer readapi.PingEvery(200 * time.Millisecond)()
	f := start(t)
	base := f.live() + "/logs/flask/1.0?follow=true"
	b := id("flask")
	odd := "\x1b[31mred\x1b[0m\r50%\r100%"
	f.logs(b, "one\n\n"+odd+"\n", "four é\n")
	s := follow(t, base)
	for n, want := range []string{"one", "", odd, "four é"} {
		if l, ok := s.line(); !ok || l != (logLine{n + 1, want}) {
			t.Errorf("%v, want %q", l, want)
		}
	}
	f.add(b.Log(1), events.LogAppended{Chunk: 2, FirstLine: 5, Lines: 2, Text: "five\nsix\n"})
	if l, ok := s.line(); !ok || l.Text != "five" {
		t.Error(l)
	}
	s.resp.Body.Close() // and again, from the next line on
	s = follow(t, base+"&from=2", "Last-Event-ID", "5")
	if l, ok := s.line(); !ok || l != (logLine{6, "six"}) {
		t.Error(l)
	}
	late := follow(t, base+"&tail=1")
	if l, ok := late.line(); !ok || l != (logLine{6, "six"}) {
		t.Error(l)
	}
	f.add(id("other").Stream(), events.BuildQueued{}) // wakes nobody
	f.add(b.Log(1), events.LogAppended{Chunk: 3, FirstLine: 7, Lines: 1, Text: "seven\n"})
	f.add(b.Stream(), events.BuildFailed{Attempt: 1, LogLines: 7})
	for _, s := range []*follower{s, late} {
		if l, ok := s.line(); !ok || l != (logLine{7, "seven"}) {
			t.Error(l)
		}
		if l, ok := s.line(); ok {
			t.Error("after the last line:", l)
		}
	}
	// One that has ended is sent and ends at once, also where the client has all of it; here the answer is checked against the contract.
	status, _, body := f.get("/logs/flask/1.0?follow=true&tail=2")
	if text, _ := body.(string); status != http.StatusOK || strings.Count(text, "event: line") != 2 || !strings.HasSuffix(text, "event: end\ndata: {\"total_lines\":7}\n\n") {
		t.Errorf("%d %q", status, body)
	}
	_, _, body = f.get("/logs/flask/1.0?follow=true", "Last-Event-ID", "7")
	if text, _ := body.(string); strings.Contains(text, "event: line") || !strings.Contains(text, "event: end") {
		t.Errorf("%q", text)
	}
	for _, query := range []string{"&to=5", "&format=text", "&tail=3&from=1"} {
		f.expect("/logs/flask/1.0?follow=true"+query, http.StatusBadRequest)
	}
	if status, _, _ := f.get("/logs/flask/1.0?follow=true", "Last-Event-ID", "x"); status != http.StatusBadRequest {
		t.Error(status)
	}
	f.expect("/logs/flask/1.1?follow=true", http.StatusNotFound)
}

// A chunk is kept in pieces; wherever they are cut, lines and characters stay whole.
func TestPiecesHoldWholeCharacters(t *testing.T) {
	f := start(t)
	var chunks []string
	var want []string
	for n := range 4 {
		var text strings.Builder
		for text.Len() < 60_000 {
			line := strings.Repeat("é€😀", len(want)%70) + strconv.Itoa(len(want))
			want = append(want, line)
			text.WriteString(line + "\n")
		}
		if n == 2 {
			want = append(want, strings.Repeat("€", 4_000))
			text.WriteString(want[len(want)-1] + "\n")
		}
		chunks = append(chunks, text.String())
	}
	f.logs(id("flask"), chunks...)
	body := f.expect("/logs/flask/1.0", http.StatusOK)
	lines := pick(body, "lines").([]any)
	if len(lines) != len(want) {
		t.Fatalf("%d lines, want %d", len(lines), len(want))
	}
	for i, l := range lines {
		if l != want[i] {
			t.Fatalf("line %d: %q, want %q", i+1, l, want[i])
		}
	}
	_, header, text := f.get("/logs/flask/1.0?format=text")
	if text != strings.Join(want, "\n")+"\n" || !strings.HasPrefix(header.Get("Content-Disposition"), "attachment; filename=flask-1.0-") {
		t.Errorf("%d bytes, %v", len(text.(string)), header)
	}
	for from := 1; from < len(want); from += 97 {
		body := f.expect(fmt.Sprintf("/logs/flask/1.0?from=%d&to=%d", from, from+40), http.StatusOK)
		for i, l := range pick(body, "lines").([]any) {
			if l != want[from+i-1] {
				t.Fatalf("line %d: %q", from+i, l)
			}
		}
	}
	var broken int
	if err := f.pool.QueryRow(t.Context(), `select count(*) from logs.pieces where text not like E'%\n' or octet_length(text) > 12002`).Scan(&broken); err != nil || broken > 0 {
		t.Errorf("%d pieces end within a line or are too large: %v", broken, err)
	}
}

func (f *fixture) search(query string) (found []string, next string) {
	f.t.Helper()
	body := f.expect("/logs/search?"+query, http.StatusOK)
	for _, item := range items(body) {
		found = append(found, fmt.Sprintf("%s:%v", pick(item, "name"), pick(item, "line")))
	}
	next, _ = pick(body, "next").(string)
	return found, next
}

func TestSearchTakesTheTextAsItIs(t *testing.T) {
	f := start(t)
	f.logs(id("a"), strings.Join([]string{
		"100% done", "1000 done", "snake_case here", "snakeXcase here", `C:\path\x`, "Fatal Error: Python.h", "école ÉCOLE", "日本語のログ",
		"*** [Makefile:1] (a|b)+ 'quoted' \"x\"", "Straße ΣΑΣ", "a\tb   ===",
	}, "\n")+"\n")
	for q, want := range map[string]string{
		"100%": "a:1", "00% d": "a:1", "%%%": "", "___": "", "snake_case": "a:3", "SNAKE_CASE": "a:3", `\path\`: "a:5", `C:\`: "a:5", `\\\`: "",
		"fatal error": "a:6", "python.H": "a:6", "École": "a:7", "COLE É": "a:7", "日本語": "a:8", "***": "a:9", "(a|b)+": "a:9", "'quoted'": "a:9",
		"straße σας": "", "STRASSE": "", "σασ": "a:10", "a\tb": "a:11", "===": "a:11", "done": "a:2 a:1", "one\n1000": "", "%done": "",
	} {
		if got, _ := f.search("q=" + url.QueryEscape(q)); strings.Join(got, " ") != want {
			t.Errorf("%q: %v, want %q", q, got, want)
		}
	}
	for _, query := range []string{
		"", "q=", "q=ab", "q=" + strings.Repeat("x", 201), "q=%C3%A9%C3%A9", "q=abc&context=11", "q=abc&text=x", "q=abc&from=2026", "q=abc&cursor=x",
		"q=abc&from=2026-02-01T00:00:00Z&to=2026-01-01T00:00:00Z", "q=a%00bc",
	} {
		f.expect("/logs/search?"+query, http.StatusBadRequest)
	}
	f.expect("/logs/search?q="+url.QueryEscape("ééé"), http.StatusOK) // three characters
}

func TestSearchFiltersAndContext(t *testing.T) {
	f := start(t)
	numbered := func(from, to int) string {
		var b strings.Builder
		for n := from; n <= to; n++ {
			fmt.Fprintf(&b, "line %d %s\n", n, strings.Repeat("y", 80))
		}
		return b.String()
	}
	a, b := id("a"), id("b")
	b.PythonTag, b.PlatformTag, b.Version = "cp312", "linux_s390x", "2.0"
	f.logs(a, numbered(1, 99)+"needle one\n", "needle two\n"+numbered(102, 300)) // the hits stand at a chunk's edges
	between := time.Now()
	time.Sleep(5 * time.Millisecond)
	f.logs(b, "needle\n"+numbered(2, 2))
	at := url.QueryEscape(between.UTC().Format(time.RFC3339Nano))
	for query, want := range map[string]string{
		"": "b:1 a:101 a:100", "&package=A": "a:101 a:100", "&package=B&version=2": "b:1", "&version=1.0.0": "a:101 a:100", "&python_tag=cp312": "b:1",
		"&platform_tag=linux_x86_64": "a:101 a:100", "&from=" + at: "b:1", "&to=" + at: "a:101 a:100", "&package=c": "", "&from=2100-01-01T00:00:00Z": "", "&to=2000-01-01T00:00:00Z": "",
	} {
		if got, next := f.search("q=needle" + query); strings.Join(got, " ") != want || next != "" {
			t.Errorf("%s: %v %s, want %q", query, got, next, want)
		}
	}
	item := pick(f.expect("/logs/search?q=needle+two&context=2", http.StatusOK), "items", 0)
	short := func(v any) (s []string) {
		for _, l := range v.([]any) {
			s = append(s, strings.TrimRight(l.(string), " y"))
		}
		return s
	}
	if got := fmt.Sprintf("%v %v %v %v %v", short(pick(item, "before")), pick(item, "text"), short(pick(item, "after")), pick(item, "attempt"), pick(item, "version")); got != "[line 99 needle one] needle two [line 102 line 103] 1 1.0" {
		t.Error(got)
	}
	item = pick(f.expect("/logs/search?q=needle&package=b&context=10", http.StatusOK), "items", 0)
	f.same(0, len(pick(item, "before").([]any)))
	f.same(1, len(pick(item, "after").([]any)))
	item = pick(f.expect("/logs/search?q=line+50+y&context=10", http.StatusOK), "items", 0)
	if got := fmt.Sprint(short(pick(item, "before"))[0], short(pick(item, "after"))[9]); got != "line 40line 60" {
		t.Error(got)
	}
	// Long lines are cut around the text, within no character.
	f.logs(id("long"), strings.Repeat("é", 10_000)+"xXneedXx"+strings.Repeat("é", 10_000)+"\n")
	text := pick(f.expect("/logs/search?q=xneedx", http.StatusOK), "items", 0, "text").(string)
	if len(text) > 2010 || !strings.Contains(text, "xXneedXx") || !utf8.ValidString(text) || strings.ContainsRune(text, utf8.RuneError) {
		t.Errorf("%d bytes: %q", len(text), text)
	}
}

// Pages of a search, over several pieces and segments, hold each line once, also while logs grow.
func TestSearchPages(t *testing.T) {
	f := start(t)
	filler := strings.Repeat(strings.Repeat("z", 99)+"\n", 500)
	want := 0
	for n := range 9 { // 27 MiB: two segments
		var chunks []string
		for range 60 {
			chunks = append(chunks, filler+fmt.Sprintf("Needle %d\nneedle É\n", n))
			want += 2
		}
		f.logs(id(fmt.Sprintf("p%d", n)), chunks...)
	}
	var segments int
	if err := f.pool.QueryRow(t.Context(), `select count(distinct segment) from logs.pieces`).Scan(&segments); err != nil || segments < 2 {
		t.Fatal(segments, err)
	}
	for _, q := range []string{"needle", "needle é", "NEEDLE"} {
		lines, logs := want, "p8p7p6p5p4p3p2p1p0"
		switch q {
		case "needle é":
			lines = want / 2
		case "NEEDLE": // when each look is cut off; with the log that has grown
			lines, logs = want+1, "gr"+logs
			defer readapi.SearchTime(-1)()
		}
		seen := map[string]bool{}
		order := ""
		for cursor, pages := "", 0; ; pages++ {
			got, next := f.search("limit=77&q=" + url.QueryEscape(q) + cursor)
			for _, g := range got {
				if seen[g] {
					t.Fatal("twice:", g)
				}
				seen[g] = true
				if order == "" || !strings.HasSuffix(order, g[:2]) {
					order += g[:2]
				}
			}
			if pages == 1 && q == "needle" { // newer than what is left
				f.logs(id("grown"), "needle grown\n")
			}
			if next == "" {
				break
			}
			cursor = "&cursor=" + next
		}
		if len(seen) != lines || order != logs {
			t.Errorf("%s: %d, want %d, in the order %s", q, len(seen), lines, order)
		}
	}
}
