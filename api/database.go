package api

import (
	"errors"
	"io"
	"net"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/wheelrefinery/refinery/internal/fault"
)

// database is what a client is told of an error of the database: whether trying again helps. nil: it is no such error, or a defect.
func database(err error) *fault.Error {
	_, connecting := errors.AsType[*pgconn.ConnectError](err)
	_, network := errors.AsType[net.Error](err)
	pg, answered := errors.AsType[*pgconn.PgError](err)
	switch {
	case answered && pg.Code == "55P03":
		return fault.New(fault.Unavailable, "Something holds what this needs. Try again in a moment.")
	case answered && pg.Code == "57014":
		return fault.New(fault.Timeout, "The database took too long. Ask for less: add a filter, or lower the limit.")
	case connecting, network, errors.Is(err, io.ErrUnexpectedEOF), pgconn.SafeToRetry(err),
		answered && (strings.HasPrefix(pg.Code, "57P") || strings.HasPrefix(pg.Code, "08") || pg.Code == "53300"):
		return fault.New(fault.Unavailable, "The database does not answer. Try again in a moment; /ready says how it stands.")
	}
	return nil
}
