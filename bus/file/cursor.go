package file

import (
	"bytes"
	"errors"
	"io"
	"os"
)

const readSize = 256 << 10

// cursor reads the lines of a topic from a position on. It delivers only lines that are complete and whose checksum is
// right; others it reports and passes.
type cursor struct {
	topic *topic
	pos   int64 // of the next line

	file    *os.File // the segment that holds pos; nil before the first read
	base    int64
	next    int64 // where the next segment starts; 0 while this one is not sealed
	buf     []byte
	unread  []byte // bytes from pos on; a part of buf
	suspect int64  // position of a complete line that was wrong when it was read once, else -1
}

func newCursor(t *topic, pos int64) *cursor {
	return &cursor{topic: t, pos: pos, buf: make([]byte, readSize), suspect: -1}
}

func (c *cursor) close() error {
	if c.file == nil {
		return nil
	}
	return c.file.Close()
}

// read returns the next message and the position of its line; nil at the end of what is there.
func (c *cursor) read() (*record, int64, error) {
	for {
		i := bytes.IndexByte(c.unread, '\n')
		if i < 0 {
			if more, err := c.fill(); err != nil || !more {
				return nil, 0, err
			}
			continue
		}
		r, err := decodeLine(c.unread[:i])
		if err != nil && c.suspect != c.pos {
			// It may have been read while a torn tail was cut and written over: look again.
			c.suspect, c.unread = c.pos, nil
			continue
		}
		pos := c.pos
		if err != nil {
			c.report(err.Error(), i+1)
		}
		c.skip(i + 1)
		if err == nil {
			return r, pos, nil
		}
	}
}

func (c *cursor) skip(n int) {
	c.pos += int64(n)
	c.unread = c.unread[n:]
}

func (c *cursor) report(reason string, n int) {
	c.topic.logger.Error("Corrupt bytes in a bus segment are skipped",
		"segment", segmentName(c.base), "offset", c.pos-c.base, "bytes", n, "reason", reason)
}

// fill reads until unread holds a whole line, and says whether it does. Part of a line is not kept: a writer that finds it
// torn replaces it.
func (c *cursor) fill() (bool, error) {
	for {
		c.unread = nil
		if c.file == nil {
			if found, err := c.open(); err != nil || !found {
				return false, err
			}
		}
		n, err := c.file.ReadAt(c.buf, c.pos-c.base)
		if err != nil && !errors.Is(err, io.EOF) {
			return false, err
		}
		c.unread = c.buf[:n]
		switch {
		case bytes.IndexByte(c.unread, '\n') >= 0:
			return true, nil
		case n == len(c.buf) && n < maxLine:
			c.buf = make([]byte, min(2*n, maxLine))
			continue
		case n == len(c.buf):
			c.report("no line is this long", n)
			c.skip(n)
			continue
		}
		if c.next == 0 {
			bases, err := c.topic.segments()
			if err != nil {
				return false, err
			}
			for _, base := range bases {
				if base > c.base {
					c.next = base
					break
				}
			}
			if c.next == 0 {
				return false, nil
			}
			continue // sealed by now, but perhaps not yet when its end was read
		}
		if n > 0 {
			c.report("incomplete line at the end of a sealed segment", n)
		}
		if err := c.advance(); err != nil {
			return false, err
		}
	}
}

// open opens the segment that holds pos, or the oldest one after it; false if there is none.
func (c *cursor) open() (bool, error) {
	bases, err := c.topic.segments()
	if err != nil || len(bases) == 0 {
		return false, err
	}
	c.base = bases[0]
	for _, base := range bases {
		if base <= c.pos {
			c.base = base
		}
	}
	f, err := c.topic.root.Open(segmentName(c.base))
	if err != nil {
		return false, err
	}
	c.file, c.next, c.pos = f, 0, max(c.pos, c.base)
	return true, nil
}

// advance leaves a sealed segment.
func (c *cursor) advance() error {
	f := c.file
	c.file, c.pos, c.unread = nil, max(c.pos, c.next), nil
	if len(c.buf) > readSize {
		c.buf = make([]byte, readSize)
	}
	return f.Close()
}
