package api

import (
	"bytes"
	"compress/gzip"
	"io"

	"github.com/klauspost/compress/zstd"
)

// codings are the values of Content-Encoding that are taken, in lower case, and how each
// is unpacked. most is the largest body, in bytes.
var codings = map[string]func(packed []byte, most int64) ([]byte, error){
	"":         func(body []byte, _ int64) ([]byte, error) { return body, nil },
	"identity": func(body []byte, _ int64) ([]byte, error) { return body, nil },
	"gzip":     gunzip,
	"x-gzip":   gunzip,
	"zstd":     unzstd,
}

func gunzip(packed []byte, most int64) ([]byte, error) {
	r, err := gzip.NewReader(bytes.NewReader(packed))
	if err != nil {
		return nil, errPacked
	}
	return readUnpacked(r, most)
}

// maxWindow is the largest window of a zstd body, which is held in memory while it is
// unpacked. It is that of the coding zstd in HTTP (RFC 9659).
const maxWindow = 8 << 20

func unzstd(packed []byte, most int64) ([]byte, error) {
	r, err := zstd.NewReader(bytes.NewReader(packed), zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxWindow))
	if err != nil {
		return nil, errPacked
	}
	defer r.Close()
	return readUnpacked(r, most)
}

// readUnpacked reads at most what is allowed of a body that may unpack to far more.
func readUnpacked(r io.Reader, most int64) ([]byte, error) {
	body, err := io.ReadAll(io.LimitReader(r, most+1))
	switch {
	case int64(len(body)) > most:
		return nil, errTooLarge
	case err != nil:
		return nil, errPacked
	}
	return body, nil
}
