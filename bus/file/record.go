package file

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"maps"
	"time"
	"unicode/utf8"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/go-json-experiment/json/v1"

	"github.com/wheelrefinery/refinery/bus"
)

// A line of a segment is a JSON object with the CRC-32C of the bytes of its msg:
//
//	{"crc32c":"0a1b2c3d","msg":{"uuid":"…","time":"…","metadata":{…},"text":"…"}}
const (
	linePrefix = `{"crc32c":"`
	lineMiddle = `","msg":`
	lineHead   = len(linePrefix) + 8 + len(lineMiddle)
	// maxLine is what a line can grow to: JSON writes a control character in six bytes.
	maxLine = 6*(bus.MaxMessageBytes+bus.PoisonHeadroom) + 1024
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// record is a message as it is stored. The payload is in Text if it is valid UTF-8, else in Base64.
type record struct {
	UUID     string            `json:"uuid"`
	Time     time.Time         `json:"time"`
	Metadata map[string]string `json:"metadata,omitempty"`
	Text     string            `json:"text,omitempty"`
	Base64   []byte            `json:"base64,omitempty"`
}

func (r *record) payload() []byte {
	if len(r.Base64) > 0 {
		return bytes.Clone(r.Base64)
	}
	return []byte(r.Text)
}

// Message is delivery.Record's.
func (r *record) Message() *message.Message {
	m := message.NewMessage(r.UUID, r.payload())
	if r.Metadata != nil {
		m.Metadata = maps.Clone(r.Metadata)
	}
	return m
}

// encodeLine appends m to buf as a line, with its newline.
func encodeLine(buf *bytes.Buffer, topic string, m *message.Message, now time.Time) error {
	if err := bus.CheckMessage(topic, m); err != nil {
		return err
	}
	r := record{UUID: m.UUID, Time: now.UTC(), Metadata: m.Metadata}
	if utf8.Valid(m.Payload) {
		r.Text = string(m.Payload)
	} else {
		r.Base64 = m.Payload
	}

	start := buf.Len()
	buf.WriteString(linePrefix + "00000000" + lineMiddle)
	enc := json.NewEncoder(buf)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(&r); err != nil {
		return fmt.Errorf("bus: encode message %q: %w", m.UUID, err)
	}
	buf.Truncate(buf.Len() - 1) // the encoder's newline
	line := buf.Bytes()[start:]
	putChecksum(line[len(linePrefix):], line[lineHead:])
	buf.WriteString("}\n")
	return nil
}

func putChecksum(dst, body []byte) {
	sum := crc32.Checksum(body, castagnoli)
	hex.Encode(dst, []byte{byte(sum >> 24), byte(sum >> 16), byte(sum >> 8), byte(sum)})
}

// decodeLine reads a line without its newline. It accepts only what encodeLine can have written.
func decodeLine(line []byte) (*record, error) {
	if len(line) <= lineHead || !bytes.HasPrefix(line, []byte(linePrefix)) || line[len(line)-1] != '}' ||
		string(line[lineHead-len(lineMiddle):lineHead]) != lineMiddle {
		return nil, errors.New("not a message line")
	}
	body := line[lineHead : len(line)-1]
	var sum [8]byte
	putChecksum(sum[:], body)
	if got := line[len(linePrefix) : len(linePrefix)+8]; !bytes.Equal(got, sum[:]) {
		return nil, fmt.Errorf("checksum is %s, line says %q", sum, got)
	}
	var r record
	if err := json.Unmarshal(body, &r); err != nil {
		return nil, fmt.Errorf("decode message: %w", err)
	}
	return &r, nil
}
