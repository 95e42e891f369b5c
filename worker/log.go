package worker

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"sync"
	"time"
	"unicode/utf8"
)

const (
	maxChunk      = 64 << 10  // bytes of text in one post
	maxLine       = 16 << 10  // a longer line is split
	tailLines     = 2000      // kept to the end, for whoever asks why it failed and for what a log over its limit ends with
	tailBytes     = 512 << 10 // of them at most
	flushInterval = time.Second
)

// logStream sends what a build writes to the control plane, in chunks of whole lines: at most every flushInterval, or as soon as a chunk is
// full. Of a log over its limit it sends the first part and the last lines, and says how much is missing. It holds no more than a chunk
// and the last lines, so a control plane that is away holds up the build instead of filling the memory.
type logStream struct {
	post  func(ctx context.Context, chunk int, text string) error
	limit int64 // bytes to send before cutting

	mu      sync.Mutex
	rest    []byte       // the beginning of a line
	pending bytes.Buffer // whole lines to send
	sent    int64        // bytes sent or pending
	chunk   int          // next number
	lines   int          // lines sent or pending
	cut     bool
	missed  int64    // bytes in lines that are in neither part
	last    []string // the last lines, oldest first
	size    int      // bytes in last
	unsent  int      // how many of last were not sent
	err     error    // the first failure to post; nothing is sent after it
}

// copy reads until r ends, and flushes now and then. It returns the error of a post, which failed also learns at once; r is read to its
// end all the same.
func (l *logStream) copy(ctx context.Context, r io.Reader, failed func(error)) error {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() {
		tick := time.NewTicker(flushInterval)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				l.mu.Lock()
				l.flush(ctx)
				err := l.err
				l.mu.Unlock()
				if err != nil {
					failed(err)
				}
			case <-ctx.Done():
				return
			}
		}
	})
	buf := make([]byte, 64<<10)
	for {
		n, err := r.Read(buf)
		l.write(ctx, buf[:n])
		l.mu.Lock()
		refused := l.err
		l.mu.Unlock()
		if refused != nil {
			failed(refused)
		}
		if err != nil {
			break
		}
	}
	cancel()
	wg.Wait()
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}

// say adds a line of the worker's own.
func (l *logStream) say(ctx context.Context, format string, args ...any) {
	l.write(ctx, fmt.Appendf(nil, "[refinery] "+format+"\n", args...))
}

// finish sends all that is left, and returns the first error of a post.
func (l *logStream) finish(ctx context.Context) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.rest) > 0 {
		l.line(ctx, l.rest)
		l.rest = nil
	}
	if l.cut {
		kept := l.last[len(l.last)-l.unsent:]
		l.cut = false
		if l.missed > 0 {
			l.send(ctx, fmt.Sprintf("[refinery] … %d bytes of the log are left out here …", l.missed))
		}
		for _, line := range kept {
			l.send(ctx, line)
		}
	}
	l.flush(ctx)
	return l.err
}

func (l *logStream) write(ctx context.Context, p []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(p) > 0 {
		end := bytes.IndexByte(p, '\n')
		if end < 0 {
			l.rest = append(l.rest, p...)
			p = nil
		} else {
			line := p[:end]
			if len(l.rest) > 0 {
				line = append(l.rest, line...)
			}
			p = p[end+1:]
			l.long(ctx, &line)
			l.line(ctx, line)
			l.rest = l.rest[:0]
		}
	}
	l.long(ctx, &l.rest)
}

// long takes what is over maxLine off the front of a line, without breaking a character.
func (l *logStream) long(ctx context.Context, line *[]byte) {
	for len(*line) > maxLine {
		end := maxLine
		for back := 1; back < utf8.UTFMax; back++ {
			if utf8.RuneStart((*line)[end-back]) {
				if !utf8.FullRune((*line)[end-back : end]) {
					end -= back
				}
				break
			}
		}
		l.line(ctx, (*line)[:end])
		*line = (*line)[end:]
	}
}

// line takes one line: valid UTF-8 without NUL from here on.
func (l *logStream) line(ctx context.Context, raw []byte) {
	raw = bytes.TrimSuffix(raw, []byte("\r"))
	text := string(bytes.ReplaceAll(bytes.ToValidUTF8(raw, []byte("\uFFFD")), []byte{0}, []byte("\uFFFD")))
	if l.sent+int64(len(text)) > l.limit {
		l.cut = true
	}
	l.last = append(l.last, text)
	l.size += len(text) + 1
	if l.cut {
		l.unsent++
	}
	for len(l.last) > tailLines || l.size > tailBytes {
		if l.unsent == len(l.last) {
			l.unsent--
			l.missed += int64(len(l.last[0])) + 1
		}
		l.size -= len(l.last[0]) + 1
		l.last[0] = ""
		l.last = l.last[1:]
	}
	if !l.cut {
		l.send(ctx, text)
	}
}

func (l *logStream) send(ctx context.Context, line string) {
	if l.pending.Len()+len(line)+1 > maxChunk {
		l.flush(ctx)
	}
	l.pending.WriteString(line)
	l.pending.WriteByte('\n')
	l.sent += int64(len(line)) + 1
	l.lines++
}

// flush sends the pending lines. A reader that writes meanwhile waits.
func (l *logStream) flush(ctx context.Context) {
	if l.pending.Len() == 0 {
		return
	}
	if l.err == nil && ctx.Err() == nil {
		if l.err = l.post(ctx, l.chunk, l.pending.String()); l.err == nil {
			l.chunk++
			l.pending.Reset()
		} else if ctx.Err() != nil {
			l.err = nil // finish may try again
		}
	}
	if l.err != nil || l.pending.Len() > maxChunk {
		l.pending.Reset()
	}
}

// tail returns the last lines, and count the lines that were sent.
func (l *logStream) tail(n int) []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]string{}, l.last[max(0, len(l.last)-n):]...)
}

func (l *logStream) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.lines
}
