package api

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http/httptest"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/wheelrefinery/refinery/internal/fault"
)

// A database that goes away is no defect, whichever operation finds out.
func TestDatabaseTrouble(t *testing.T) {
	for _, c := range []struct {
		err  error
		want int
	}{
		{&pgconn.ConnectError{}, 503},
		{&net.OpError{Op: "read", Err: io.EOF}, 503},
		{io.ErrUnexpectedEOF, 503},
		{&pgconn.PgError{Code: "57P01"}, 503},
		{&pgconn.PgError{Code: "53300"}, 503},
		{&pgconn.PgError{Code: "55P03"}, 503},
		{&pgconn.PgError{Code: "57014"}, 504},
		{&pgconn.PgError{Code: "42601"}, 500},
		{context.DeadlineExceeded, 504},
		{fmt.Errorf("%w: %w", fault.New(fault.Conflict, "no"), io.ErrUnexpectedEOF), 409},
		{io.EOF, 500},
	} {
		w := httptest.NewRecorder()
		if WriteProblem(w, httptest.NewRequest("POST", "/", nil), fmt.Errorf("read: %w", c.err)); w.Code != c.want {
			t.Errorf("%v is %d, want %d", c.err, w.Code, c.want)
		}
	}
}
