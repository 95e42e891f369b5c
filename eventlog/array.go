package eventlog

import (
	"encoding/binary"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgtype"
)

// array builds the binary form of a Postgres array (array_recv in the server's source): a header, then each element with its length.
// The driver's own way there costs ten times as much for the many small arrays of an append, as much as the server's work.
type array struct {
	buf []byte
	n   uint32
}

var be = binary.BigEndian

const headerSize = 20

func newArray(oid uint32) *array {
	a := &array{buf: make([]byte, headerSize, 512)}
	be.PutUint32(a.buf[8:], oid)
	return a
}

func texts() *array   { return newArray(pgtype.TextOID) }
func bigints() *array { return newArray(pgtype.Int8OID) }
func uuids() *array   { return newArray(pgtype.UUIDOID) }

func (a *array) text(s string) {
	a.n++
	a.buf = append(be.AppendUint32(a.buf, uint32(len(s))), s...)
}

func (a *array) bigint(v int64) {
	a.n++
	a.buf = be.AppendUint64(be.AppendUint32(a.buf, 8), uint64(v))
}

func (a *array) uuid(id uuid.UUID) {
	a.n++
	a.buf = append(be.AppendUint32(a.buf, 16), id[:]...)
}

func (a *array) encoded() []byte {
	if a.n == 0 {
		return a.buf[:12] // no dimensions
	}
	be.PutUint32(a.buf, 1) // dimensions; then flags: no nulls
	be.PutUint32(a.buf[12:], a.n)
	be.PutUint32(a.buf[16:], 1) // lower bound
	return a.buf
}

// timestamp is the binary form of a timestamptz: microseconds since the year 2000.
func timestamp(t time.Time) []byte {
	return be.AppendUint64(nil, uint64(t.UnixMicro()-946_684_800_000_000))
}
