package api_test

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"image"
	"image/png"
	"strings"
	"testing"

	"codexpool/api"
	"codexpool/upstream"
)

// pictured is a PNG of one pixel whose header says that it has more.
func pictured(t *testing.T, width, height uint32) string {
	t.Helper()
	var b bytes.Buffer
	if err := png.Encode(&b, image.NewGray(image.Rect(0, 0, 1, 1))); err != nil {
		t.Fatal(err)
	}
	header := b.Bytes()[12:29] // IHDR and its 13 bytes; the checksum follows
	binary.BigEndian.PutUint32(header[4:], width)
	binary.BigEndian.PutUint32(header[8:], height)
	binary.BigEndian.PutUint32(b.Bytes()[29:], crc32.ChecksumIEEE(header))
	return base64.StdEncoding.EncodeToString(b.Bytes())
}

// TestImagesOfManyPixelsAreNotForDirectChildren: Codex decodes what it passes on. Behind
// the relay the child sees no image, and the provider decides.
func TestImagesOfManyPixelsAreNotForDirectChildren(t *testing.T) {
	for _, tt := range []struct {
		width, height uint32
		relay         *upstream.Relay
		want          string
	}{
		{8000, 5000, nil, ""},
		{8000, 5001, nil, "at most 40000000 pixels"},
		{16000, 16000, nil, "at most 40000000 pixels"},
		{1, 2147483647, nil, "at most 40000000 pixels"},
		{16000, 16000, &upstream.Relay{}, ""},
	} {
		body := fmt.Sprintf(`{"messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"data:image/png;base64,%s"}}]}]}`, pictured(t, tt.width, tt.height))
		_, _, _, err := api.Decoded([]byte(body), false, config(), tt.relay)
		if got := fmt.Sprint(err); (err == nil) != (tt.want == "") || !strings.Contains(got, tt.want) {
			t.Errorf("%d x %d, relay %v: %v", tt.width, tt.height, tt.relay != nil, err)
		}
	}
}
