package commands

import (
	"strings"

	"github.com/wheelrefinery/refinery/events"
	"github.com/wheelrefinery/refinery/internal/fault"
)

// Limits of a log.
const (
	mostChunk = 64 << 10 // bytes of one chunk
	mostLog   = 64 << 20 // bytes of one attempt; a worker cuts well before
)

// Log is the state of an attempt's log.
type Log struct {
	NextChunk int `json:"next_chunk"`
	Lines     int `json:"lines"`
	bytes     int
}

// Fold applies an event.
func (l Log) Fold(e events.LogEvent) Log {
	switch e := e.(type) {
	case events.LogAppended:
		l.NextChunk, l.Lines, l.bytes = e.Chunk+1, l.Lines+e.Lines, l.bytes+len(e.Text)
	}
	return l
}

// AppendLog adds a chunk to an attempt's log. Chunks are numbered from 0; repeating one changes nothing.
type AppendLog struct {
	Build   events.BuildID `json:"build"`
	Attempt int            `json:"attempt"`
	Chunk   int            `json:"chunk"`
	Text    string         `json:"text"`
}

// Decide appends the next chunk. A last line that does not end gets its end: chunks hold whole lines.
func (c AppendLog) Decide(l Log) ([]events.LogEvent, error) {
	switch {
	case c.Chunk < l.NextChunk:
		return none[events.LogEvent]()
	case c.Chunk > l.NextChunk:
		return conflict[events.LogEvent]("chunk %d is next, not %d: send what is missing first", l.NextChunk, c.Chunk)
	case l.bytes+len(c.Text) > mostLog:
		return nil, fault.New(fault.TooLarge, "the log is at its limit of %d bytes: cut it at the worker", mostLog)
	}
	text := c.Text
	if !strings.HasSuffix(text, "\n") {
		text += "\n"
	}
	return one[events.LogEvent](events.LogAppended{Chunk: c.Chunk, FirstLine: l.Lines + 1, Lines: strings.Count(text, "\n"), Text: text})
}

// Name is the name on the bus.
func (AppendLog) Name() string { return "log.append" }

// Stream is the log of the attempt.
func (c AppendLog) Stream() string { return c.Build.Log(c.Attempt) }

// Validate checks the shape.
func (c AppendLog) Validate() error {
	var k fault.Checks
	checkBuild(&k, "/build", c.Build)
	k.Check(c.Attempt > 0, "/attempt", "is not a positive number")
	k.Check(c.Chunk >= 0, "/chunk", "is negative")
	k.Check(c.Text != "", "/text", "is empty")
	k.Check(clean(c.Text, mostChunk), "/text", "is longer than %d bytes or not UTF-8 text without NUL", mostChunk)
	return k.Err()
}

func init() {
	register[AppendLog]()
}
