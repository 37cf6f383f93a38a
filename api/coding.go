package api

import (
	"compress/gzip"
	"io"

	"github.com/klauspost/compress/zstd"
)

// unpacker makes a reader of what a body unpacks to.
type unpacker func(packed io.Reader) (io.ReadCloser, error)

// codings are the values of Content-Encoding that are taken, in lower case.
var codings = map[string]unpacker{
	"":         unchanged,
	"identity": unchanged,
	"gzip":     gunzip,
	"x-gzip":   gunzip,
	"zstd":     unzstd,
}

func unchanged(body io.Reader) (io.ReadCloser, error) { return io.NopCloser(body), nil }

func gunzip(packed io.Reader) (io.ReadCloser, error) { return gzip.NewReader(packed) }

// maxWindow is the largest window of a zstd body, which is held in memory while it is
// unpacked. It is that of the coding zstd in HTTP (RFC 9659).
const maxWindow = 8 << 20

func unzstd(packed io.Reader) (io.ReadCloser, error) {
	r, err := zstd.NewReader(packed, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxWindow))
	if err != nil {
		return nil, err
	}
	return r.IOReadCloser(), nil
}
