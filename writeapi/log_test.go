package writeapi_test

import (
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/wheelrefinery/refinery/api"
	"github.com/wheelrefinery/refinery/events"
)

// Whatever bytes a worker sends, and wherever it cuts them, the log holds whole characters and whole lines.
func TestHalfACharacterAtAChunksEdge(t *testing.T) {
	p := start(t, gate{})
	logs := "/logs/markupsafe/2.1.5?python_tag=cp311&platform_tag=linux_x86_64&attempt=1"
	chunks := []string{
		`{"chunk":0,"text":"caf` + "\xc3" + `"}`, `{"chunk":1,"text":"` + "\xa9" + `\n"}`, // é, cut in two
		`{"chunk":2,"text":"` + "\xf0\x9f\x98" + `\n\u001b[31m` + "\xff\xfe" + `red\u001b[0m\n"}`, `{"chunk":3,"text":"\ud83d"}`,
	}
	for _, c := range chunks {
		p.send(200, "POST", logs, c)
		p.send(200, "POST", logs, c) // again changes nothing
	}
	text, lines := "", 0
	for _, r := range p.stream(markup.Log(1)) {
		e := r.Event.(events.LogAppended)
		if e.FirstLine != lines+1 || !strings.HasSuffix(e.Text, "\n") || !utf8.ValidString(e.Text) {
			t.Errorf("%+v", e)
		}
		text, lines = text+e.Text, lines+e.Lines
	}
	if want := "caf\uFFFD\n\uFFFD\n\uFFFD\n\x1b[31m\uFFFDred\x1b[0m\n\uFFFD\n"; text != want || lines != 5 {
		t.Errorf("%d lines, %q, want %q", lines, text, want)
	}
	p.send(400, "POST", "/queue/enqueue", "{\"package\":\"a\xff\",\"version\":\"1\"}").says("UTF-8") // only logs are mended
	p.send(422, "POST", logs, api.LogChunk{Chunk: 4, Text: strings.Repeat("\xff", 30_000)}).says("/text")
}
