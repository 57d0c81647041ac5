//! smoke
use std::ops::ControlFlow;
fn main() {
    let s = gptalk_service::Service::builder().pace(std::time::Duration::from_millis(30)).start();
    let c = gptalk::Client::builder().base_url(&s.url()).build().unwrap();
    for i in 0..7 {
        let t = std::time::Instant::now();
        let mut st = c.stream("Привет, как дела?").unwrap().with_log();
        while let Some(e) = st.next_event() { match e { gptalk::Event::Text(t) => print!("{t}|"), gptalk::Event::Log(l) => println!("  [{l}]"), gptalk::Event::Tick=>print!("."), _=>{} } }
        println!("{i} {:?} {:?}", st.finish().map(|r| (r.pieces, r.url, r.first_text, r.duration)), t.elapsed());
    }
    let r = c.chat("a b c", |t| { println!("{t}"); ControlFlow::Break(()) });
    println!("{r:?}");
    println!("{} conns {:?}", s.connections(), s.refusals());
    drop(s);
    println!("{:?}", c.complete("x"));
}
